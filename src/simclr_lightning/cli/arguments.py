"""Clean the arguments of a command line: dashes before KEY=VALUE, Windows line ends, letters that only look right."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from typing import Final

from simclr_lightning.app.errors import mistake

KEY_VALUE: Final = ("train", "evaluate", "pack")  # the commands that take KEY=VALUE
_HYDRA: Final = frozenset(  # the flags of Hydra that take a value
    {"cfg", "config-dir", "config-name", "config-path", "experimental-rerun", "info", "package"}
)
_QUOTES: Final = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"'}
_TYPED: Final = {
    **_QUOTES,
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u00a0\u2007\u202f\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    "\uff1d": "=",
}


def cleaned(argv: Sequence[str]) -> list[str]:
    """Return a command and its arguments as they were meant.

    A line end that a script of Windows left at the end of an argument is removed. ``--KEY=VALUE``, which W&B's agent
    writes, is ``KEY=VALUE`` where the command takes that and Hydra has no such flag.

    Args:
        argv: the command and its arguments.

    Raises:
        UserError: a dash, quote or space of a word processor stands where the program needs a plain one.

    >>> cleaned(["train", "--data.batch_size=64", "seed=1\\r", "--cfg", "job", "-m"])
    ['train', 'data.batch_size=64', 'seed=1', '--cfg', 'job', '-m']
    """
    arguments = [argument.rstrip("\r\n") for argument in argv]
    takes_keys = bool(arguments) and arguments[0] in KEY_VALUE
    for argument in arguments:
        _check_letters(argument, takes_keys=takes_keys)
    return [_undashed(argument) for argument in arguments] if takes_keys else arguments


def _undashed(argument: str) -> str:
    name, equals, _ = argument.partition("=")
    key = name.lstrip("-")
    if name == key or name[0] != "-" or key in _HYDRA or (name[1] != "-" and "." not in key):
        return argument
    if equals:
        return argument.lstrip("-")
    if "." in key:
        raise mistake(f"{argument}: an override is KEY=VALUE, without a space: {key}=VALUE")
    return argument


def _check_letters(argument: str, *, takes_keys: bool) -> None:
    """Refuse letters that only look like those of the keyboard; in the middle of a value any letter may stand."""
    key, equals, value = argument.partition("=")
    plain = "".join(_TYPED.get(letter, letter) for letter in argument)
    looked_at = key if takes_keys and equals and "/" not in key else argument[:1]
    looked_at += "".join(letter for letter in (value[:1], argument[-1:]) if letter in _QUOTES)
    if equals and _is_number(plain.partition("=")[2]):
        looked_at += value
    wrong = next((letter for letter in looked_at if letter in _TYPED), None)
    if wrong and not os.path.lexists(argument) and not (equals and os.path.lexists(value)):
        name = unicodedata.name(wrong, "a letter without a name").lower()
        raise mistake(
            f"{argument}: it holds a letter that only looks like a plain one: {name} (U+{ord(wrong):04X})\ntype {plain}"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
