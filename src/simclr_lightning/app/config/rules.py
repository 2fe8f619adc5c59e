"""Define the rules of `keys`: each tests a value, and describes the allowed values for the error message."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ANY_SEED: Final = 2**32 - 1
MOST: Final = 1000  # largest rate, decay or temperature; the largest rate in use is 30, and 100,000 overflows float32
LARGEST_SIDE: Final = 8192  # pixels; a view of this side takes 0.8 GB
WIDEST: Final = 2**20  # features; a layer from h to this width has billions of weights


@dataclass(frozen=True)
class Rule:
    """Describe the values that a key may have.

    Attributes:
        accepts: returns whether a resolved, plain value is allowed.
        says: a text that follows "must be" in the message.
        required: whether the key must exist, since the program itself reads it.
    """

    accepts: Callable[[Any], bool]
    says: str
    required: bool = True

    def or_(self, *others: Any) -> Rule:
        """Return a rule that also allows these values."""
        names = " or ".join("null" if other is None else str(other).lower() for other in others)
        return Rule(lambda v: _is_one_of(v, others) or self.accepts(v), f"{self.says}, or {names}", self.required)


def whole(low: int, high: int | None = None) -> Rule:
    """Allow a whole number from ``low`` to ``high``; None: no upper limit. Booleans are refused."""
    says = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(lambda v: _is_whole(v) and low <= v <= (v if high is None else high), says)


def number(says: str, accepts: Callable[[float], bool]) -> Rule:
    """Allow a finite number for which ``accepts`` returns True; ``says`` describes it after "a number"."""
    return Rule(lambda v: _is_number(v) and accepts(v), f"a number {says}")


def one_of(*options: Any) -> Rule:
    """Allow only these values."""
    return Rule(lambda v: _is_one_of(v, options), f"one of {', '.join(map(str, options))}")


def list_of(says: str, rule: Rule, *, least: int = 1) -> Rule:
    """Allow a list of at least ``least`` different values, each of which fits a rule."""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) >= least
            and all(map(rule.accepts, value))
            and len({str(part) for part in value}) == len(value)
        )

    return Rule(accepts, f"a list {says}, without repeats")


def optional(rules: dict[str, Rule]) -> dict[str, Rule]:
    """Return the same rules for keys that may be absent: a target has a default, or not every option has the key."""
    return {key: Rule(rule.accepts, rule.says, required=False) for key, rule in rules.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one_of(value: Any, options: Sequence[Any]) -> bool:
    return any(type(value) is type(option) and value == option for option in options)


def _is_channels(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


SWITCH: Final = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT: Final = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a text that is not empty")
PREFIX: Final = Rule(lambda v: isinstance(v, str), "a text")
PATH: Final = Rule(lambda v: isinstance(v, str) and bool(v), "a path").or_(None)
FOLDER: Final = Rule(lambda v: isinstance(v, str) and bool(v), "a folder's name in data.path").or_(None)
POSITIVE: Final = number(f"above 0 and at most {MOST:,}", lambda v: 0 < v <= MOST)
TEMPERATURE: Final = number(
    f"from 0.001 to {MOST:,}: below it the loss is that of the one nearest negative, and its gradient leaves float32",
    lambda v: 0.001 <= v <= MOST,
)
NOT_NEGATIVE: Final = number(f"from 0 to {MOST:,}", lambda v: 0 <= v <= MOST)
CHANNELS: Final = Rule(_is_channels, "three numbers, one per channel").or_(None)
SPREAD: Final = Rule(lambda v: _is_channels(v) and min(v) > 0, "three numbers above 0, one per channel").or_(None)
LINES: Final = Rule(lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), "a list of shell lines")
NAMES: Final = Rule(lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), "a list of packages")
TARGET: Final = Rule(lambda v: isinstance(v, str) and bool(v), "the dotted name of a class or function")
OPTIONS: Final = Rule(lambda v: isinstance(v, dict), "options of sbatch by name, such as {mail-type: END}").or_(None)
GRID: Final = Rule(
    lambda v: isinstance(v, dict) and all(isinstance(part, str | int | float) for part in v.values()),
    "texts by key, such as {seed: '0,1'}",
).or_(None)
STORAGE: Final = Rule(lambda v: isinstance(v, str) and "://" in v, "an address such as sqlite:///study.db").or_(None)
SERVER: Final = Rule(
    lambda v: isinstance(v, str) and v.startswith(("http://", "https://")), "the address of a server, http://HOST:PORT"
).or_(None)
SAMPLER: Final = Rule(lambda v: isinstance(v, dict), "chosen as an option, such as hydra/sweeper/sampler=tpe")
NO_SPACE: Final = Rule(
    lambda v: v is None, "null; give the search space as overrides, such as 'loss.temperature=interval(0.05,1)'"
)


# Hydra's basic launcher would run all jobs in this process.
LAUNCHER: Final = Rule(lambda v: not str(v).endswith(".BasicLauncher"), "that of hydra/launcher=simclr or slurm")


# ViewRecipe checks its fields itself.
CHECKED_BY_ITSELF: Final = Rule(lambda v: True, "checked elsewhere", required=False)


def typed(annotation: Any) -> Rule:
    """Return the rule of an argument with a type annotation; a type without plain values allows nothing.

    >>> typed(int | None).accepts(True), typed(float).says
    (False, 'a number')
    """
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    kinds = [_kind(option) for option in options]
    says = list(dict.fromkeys(says for says, _ in kinds if says))
    return Rule(lambda v: any(accepts(v) for _, accepts in kinds), ", or ".join(says) or "left out", required=False)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _kind(annotation: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return the description and the test of one type that is not a union."""
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}", lambda v: _is_one_of(v, arguments)
    if origin in (list, tuple) or origin is Sequence:
        part = typed(arguments[0]) if arguments else Rule(_is_plain, "")
        return "a list", lambda v: isinstance(v, list) and all(map(part.accepts, v))
    if origin is dict:
        part = typed(arguments[1]) if arguments else Rule(_is_plain, "")
        return "values by name", lambda v: isinstance(v, dict) and all(map(part.accepts, v.values()))
    return _SIMPLE.get(origin, ("", lambda v: False))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


_SIMPLE: Final[dict[Any, tuple[str, Callable[[Any], bool]]]] = {
    bool: ("true or false", lambda v: isinstance(v, bool)),
    int: ("a whole number", _is_whole),
    float: ("a number", _is_number),
    str: ("a text", lambda v: isinstance(v, str) and bool(v)),
    Path: ("a path", lambda v: isinstance(v, str) and bool(v)),
    type(None): ("null", lambda v: v is None),
    Any: ("a plain value", _is_plain),
}
