"""Quote the values of path keys before Hydra parses them, so that users can type any file name unquoted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from omegaconf.errors import GrammarParseError
from omegaconf.grammar_parser import parse

from simclr_lightning.data import SOURCES

# The path keys, with the values that are keywords and not paths; "null" is a keyword for all of them.
PATH_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "data.path": (),
    "model.weights": ("imagenet",),
    "ckpt_path": ("last",),
    **{f"data.dataset.{part}": () for part in ("train", "val", "test")},
    "hydra.run.dir": (),
    "hydra.sweep.dir": (),
    **{f"paths.{name}": () for name in SOURCES},
}
# Path keys in which ${now:%Y} is an interpolation; in the others $ is part of a file name.
_INTERPOLATED: Final = frozenset({"hydra.run.dir", "hydra.sweep.dir"})

_PATH_OVERRIDE: Final = re.compile(
    r"(?P<start>\+{0,2}(?P<key>" + "|".join(map(re.escape, PATH_KEYS)) + r")=)(?P<value>.*)", re.DOTALL
)
# Hydra's rule: an odd number of backslashes precedes a quote inside, an even number the closing one.
# All quantifiers are possessive, since backtracking over many backslashes would take exponential time.
_QUOTED: Final = r"'(?:[^'\\]++|(?:\\\\)*+\\'|(?:\\\\)*+\\(?=[^'\\])|(?:\\\\)++(?=[^'\\]))*+(?:\\\\)*+'"
_ALREADY_QUOTED: Final = re.compile(
    rf"\s*(?:{_QUOTED}|{_QUOTED.replace(chr(39), chr(34))})"
    rf"(?:\s*,\s*(?:{_QUOTED}|{_QUOTED.replace(chr(39), chr(34))}))*\s*",
    re.DOTALL,
)


def quote_paths(argv: Sequence[str]) -> list[str]:
    """Return the overrides with the values of path keys quoted for Hydra; other overrides are unchanged.

    In a quoted value, spaces, ``= , ( ) ~ [ ] { } $``, quotes, backslashes and letters of any language are literal.
    Unchanged are also: a value in quotes, several values in quotes with commas between them (a sweep), and ``null``.
    ``${...}`` is an interpolation in ``hydra.run.dir`` and ``hydra.sweep.dir``, and literal in the other keys.
    """
    return [_quote(override) for override in argv]


def quoted(text: str) -> str:
    """Return a text in single quotes, from which Hydra's parser returns exactly the text."""
    # Backslashes need escaping only before a quote, including the closing one.
    inside = re.sub(r"(?<!\\)(\\*+)'", lambda match: match[1] * 2 + r"\'", text)
    backslashes = len(inside) - len(inside.rstrip("\\"))
    return f"'{inside}{inside[len(inside) - backslashes :]}'"


def literal(text: str) -> str:
    r"""Return a text with ``${`` escaped, so that OmegaConf resolves it to itself."""
    return re.sub(r"(?<!\\)(\\*+)\$\{", lambda match: match[1] * 2 + r"\${", text)


def _quote(override: str) -> str:
    if override.startswith("paths."):  # `paths` is empty in conf/evaluate.yaml, so Hydra must add the key
        override = f"++{override}"
    match = _PATH_OVERRIDE.fullmatch(override)
    if match is None:
        return override
    start, key, value = match["start"], match["key"], match["value"]
    if value.strip().lower() == "null" or _ALREADY_QUOTED.fullmatch(value):
        return override
    if value in PATH_KEYS[key]:
        return override
    if value == "???":  # to OmegaConf this is a missing value, even in quotes
        value = "./???"
    if not (key in _INTERPOLATED and _is_interpolation(value)):
        value = literal(value)
    return start + quoted(value)


def _is_interpolation(value: str) -> bool:
    if "${" not in value:
        return False
    try:
        parse(value)
    except GrammarParseError:
        return False
    return True


def as_value(value: Any) -> str:
    """Return a plain value as text in Hydra's grammar."""
    if isinstance(value, str):
        return quoted(literal(value))
    if isinstance(value, list):
        return f"[{','.join(map(as_value, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
