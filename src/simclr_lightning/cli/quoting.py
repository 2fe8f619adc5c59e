"""Paths on the command line, quoted before Hydra's grammar sees them: any file name can be given as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from simclr_lightning.cli.evaluation_ranges import DATA_SETS

# Words that are no path, by key; "null" is one everywhere.
PATH_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "data.path": (),
    **{f"data.dataset.{part}": () for part in ("train", "val", "test")},
    "model.weights": ("imagenet",),
    "ckpt_path": ("last",),
    "hydra.run.dir": (),
    "hydra.sweep.dir": (),
    **{f"paths.{name}": () for name in DATA_SETS},
}
# Here ${now:%Y} and the like are meant; everywhere else $ is a letter of a name.
_INTERPOLATED: Final = frozenset({"hydra.run.dir", "hydra.sweep.dir"})

_PATH_WORD: Final = re.compile(
    r"(?P<start>\+{0,2}(?P<key>" + "|".join(map(re.escape, PATH_KEYS)) + r")=)(?P<value>.*)", re.DOTALL
)
# Hydra's rule: a quote inside follows an odd number of backslashes, the closing one an even number.
# Possessive throughout: a long run of backslashes must not be tried in every way.
_QUOTED: Final = r"'(?:[^'\\]++|(?:\\\\)*+\\'|(?:\\\\)*+\\(?=[^'\\])|(?:\\\\)++(?=[^'\\]))*+(?:\\\\)*+'"
_ALREADY_QUOTED: Final = re.compile(
    rf"\s*(?:{_QUOTED}|{_QUOTED.replace(chr(39), chr(34))})"
    rf"(?:\s*,\s*(?:{_QUOTED}|{_QUOTED.replace(chr(39), chr(34))}))*\s*",
    re.DOTALL,
)


def quote_paths(argv: Sequence[str]) -> list[str]:
    """Return the words with the values of path keys quoted for Hydra; all other words as they are.

    Spaces, ``= , ( ) ~ [ ] { } $``, quotes, backslashes and any language's letters then stand for themselves.
    A value that is quoted already, or several with commas between them (a sweep), stays, and ``null`` stays a
    keyword. ``${...}`` is an interpolation in ``hydra.run.dir`` and ``hydra.sweep.dir``, a name elsewhere.
    """
    return [_quote_word(word) for word in argv]


def quoted(text: str) -> str:
    """Return the text in Hydra's single quotes: its parser gives the text back, exactly."""
    # Backslashes count only before a quote, the closing one included.
    inside = re.sub(r"(?<!\\)(\\*+)'", lambda match: match[1] * 2 + r"\'", text)
    backslashes = len(inside) - len(inside.rstrip("\\"))
    return f"'{inside}{inside[len(inside) - backslashes :]}'"


def literal(text: str) -> str:
    r"""Return the text with ``${`` escaped, so that OmegaConf resolves it to itself."""
    return re.sub(r"(?<!\\)(\\*+)\$\{", lambda match: match[1] * 2 + r"\${", text)


def _quote_word(word: str) -> str:
    match = _PATH_WORD.fullmatch(word)
    if match is None:
        return word
    start, key, value = match["start"], match["key"], match["value"]
    if value.strip().lower() == "null" or _ALREADY_QUOTED.fullmatch(value):
        return word
    if value in PATH_KEYS[key]:
        return word
    if value == "???":  # OmegaConf's mark of a missing value, whatever quotes are around it
        value = "./???"
    if not (key in _INTERPOLATED and _is_interpolation(value)):
        value = literal(value)
    return start + quoted(value)


def _is_interpolation(value: str) -> bool:
    if "${" not in value:
        return False
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    try:
        parse(value)
    except GrammarParseError:
        return False
    return True
