"""Overrides of the command line as texts, without Hydra: KEY=VALUE, +KEY=VALUE, ++KEY=VALUE, ~KEY."""

from __future__ import annotations

from collections.abc import Sequence


def split(override: str) -> tuple[str, str]:
    """Return the key, without +, ++ and ~, and the value of an override.

    >>> split("++data.path=a=b")
    ('data.path', 'a=b')
    """
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def key_of(override: str) -> str:
    """Return the key of an override, without +, ++ and ~."""
    return split(override)[0]


def is_given(overrides: Sequence[str], *keys: str) -> bool:
    """Return whether an override sets one of these keys, or a key below one of them."""
    given = [key_of(override) for override in overrides]
    return any(name == key or name.startswith((f"{key}.", f"{key}/")) for name in given for key in keys)


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """Return the overrides that set none of these keys, and no key below one of them."""
    return [override for override in overrides if not is_given([override], *keys)]


def replaced(saved: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return saved overrides followed by given ones; a saved one whose key is given is left out."""
    keys = {key_of(override) for override in given}
    return [*(override for override in saved if key_of(override) not in keys), *given]


def flag(overrides: Sequence[str], name: str) -> bool:
    """Return whether the last override of a switch such as ``debug`` sets it to true."""
    values = [value for key, value in map(split, overrides) if key == name]
    return bool(values) and values[-1].strip().lower() == "true"
