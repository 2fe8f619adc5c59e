"""The words of the command line, as Hydra's grammar reads them: KEY=VALUE, and GROUP=OPTION."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from simclr_lightning.cli.errors import UserError, mistake

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

CONFIG_NAME: Final = "train"
EVALUATED: Final = ("data", "model", "views")  # the groups of evaluate; conf/ has more, which are train's
OPTIONS_SHOWN: Final = 15


@dataclass(frozen=True)
class Word:
    """One override.

    Attributes:
        text: as it stands on the command line.
        parsed: what Hydra's parser made of it.
        is_group: whether it chooses an option of a group.
    """

    text: str
    parsed: Override
    is_group: bool = False

    @property
    def key(self) -> str:
        """The key or group, without +, ++ and ~."""
        return self.parsed.key_or_group

    @property
    def adds(self) -> bool:
        """Whether the word starts with + or ++."""
        return self.parsed.is_add() or self.parsed.is_force_add()


class Groups:
    """The groups of conf/ and of Hydra with their options, looked up when asked for.

    Args:
        loader: Hydra's config loader.
        words: all overrides; ``hydra.searchpath`` among them adds options.
        name: the configuration, train or evaluate.
    """

    def __init__(self, loader: ConfigLoader, words: Sequence[Word], name: str = CONFIG_NAME) -> None:
        self._loader = loader
        self.name = name
        self._texts = [word.text for word in words if word.key == "hydra.searchpath"]
        there = tuple(group for group in self._list("", groups=True) if group != "hydra")
        self.own = EVALUATED if name == "evaluate" else there
        self.others = frozenset(there) - frozenset(self.own)

    def options(self, key: str) -> list[str]:
        """The options of a group; none when there is no such group."""
        is_group = key in self.own or key.startswith("hydra/")
        return self._list(key, groups=False) if is_group else []

    def _list(self, group: str, *, groups: bool) -> list[str]:
        from hydra.core.object_type import ObjectType

        kind = ObjectType.GROUP if groups else ObjectType.CONFIG
        return self._loader.get_group_options(group, kind, config_name=self.name, overrides=self._texts)


def parse(texts: Sequence[str], *, sweep: bool = False, loader: ConfigLoader | None = None) -> list[Word]:
    """Read every word by Hydra's grammar.

    Args:
        texts: the words.
        sweep: whether a word may hold several values.
        loader: Hydra's config loader, which knows the options that a glob stands for.

    Raises:
        UserError: for a word that is no KEY=VALUE, or one that holds several values and is not of a sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    words = []
    for text in texts:
        try:
            override = parser.parse_override(text)
        except (HydraException, AssertionError) as error:
            raise _unreadable(text) from error
        override.config_loader = loader
        key = override.key_or_group
        if not key:
            raise _unreadable(text)
        if override.is_sweep_override() and not sweep:
            raise mistake(
                f"{text}: several values for one run; add -m for a sweep\n"
                f"a list is '{key}=[a,b]', a text with commas is \"{key}='a,b'\""
            )
        words.append(Word(text, override))
    return words


def first_value(word: Word) -> str:
    """The word, with the first of its values when it has several.

    Raises:
        UserError: for a key of Hydra's own, a range or glob without a value, or an interval that is empty or endless.
    """
    override = word.parsed
    if not override.is_sweep_override():
        return word.text
    if word.key.startswith(("hydra.", "hydra/")):
        raise mistake(f"{word.text}: a key of Hydra's own has one value; sweep keys of the run, such as seed=0,1")
    value = _first_of(word) if override.is_discrete_sweep() else _start_of(word)
    return f"{override.get_key_element()}={value}"


def trusted_by(words: Sequence[Word]) -> tuple[str, ...]:
    """The packages that ``trusted=[...]`` names on the command line; the last such word counts."""
    values = [word.parsed.value() for word in words if word.key == "trusted" and not word.parsed.is_delete()]
    value = values[-1] if values else []
    return tuple(str(name) for name in value) if isinstance(value, list) else ()


def check_groups(words: Sequence[Word], groups: Groups) -> list[Word]:
    """Check that a group is given an option of its own, once; return the words, marked as group choices.

    Raises:
        UserError: naming the options and the nearest one.
    """
    chosen: dict[str, str] = {}
    kept = []
    for word in words:
        if word.key in groups.others:
            raise mistake(f"simclr {groups.name} takes no {word.key!r}; its groups are {listed(groups.own)}")
        value = word.parsed.value()
        options = [] if isinstance(value, dict) else groups.options(word.key)
        if word.key == "experiment" and value is None and not word.parsed.is_delete():
            kept.append(replace(parse(["~experiment"])[0], is_group=True))  # Hydra takes no null for a group
            continue
        if options:
            _check_option(word, value, options)
            if chosen.setdefault(word.key, str(value)) != str(value):
                both = f"{chosen[word.key]} and {value}"
                raise mistake(f"{word.key} is chosen twice: {both}; keep one of them")
        kept.append(replace(word, is_group=bool(options)))
    return kept


def listed(names: Sequence[str]) -> str:
    """Names with commas between them, cut after some."""
    more = len(names) - OPTIONS_SHOWN
    return ", ".join(names[:OPTIONS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _check_option(word: Word, value: Any, options: Sequence[str]) -> None:
    if word.parsed.is_delete():
        raise mistake(f"{word.text}: {word.key} cannot be left out; its options are {listed(options)}")
    if word.adds:
        raise mistake(f"{word.text}: {word.key} is a group; write {word.text.lstrip('+')}")
    if isinstance(value, str) and value in options:
        return
    shown = word.text.partition("=")[2]
    near = get_close_matches(shown.lower(), options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise mistake(f"{word.key}={shown}: no such option{hint}\nthe options are {listed(options)}")


def _first_of(word: Word) -> str:
    from hydra.errors import HydraException

    try:
        for value in word.parsed.sweep_string_iterator():
            return value
    except (HydraException, ValueError):  # a step of 0
        pass
    raise mistake(f"{word.text}: there is no value in this; a range is range(FIRST,END), a glob must fit an option")


def _start_of(word: Word) -> str:
    interval: Any = word.parsed.value()
    low, high, logarithmic = interval.start, interval.end, "log" in interval.tags
    if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (logarithmic and low <= 0):
        above = ", both above 0" if logarithmic else ""
        raise mistake(f"{word.text}: an interval is interval(LOW,HIGH) of two finite numbers, the lower first{above}")
    return str(low)


def _unreadable(text: str) -> UserError:
    key, equals, value = text.partition("=")
    if not equals or not key:
        return mistake(f"{text!r}: a word must be KEY=VALUE, such as loss.temperature=0.5")
    inside = value.replace("\\", "\\\\").replace('"', '\\"')
    return mistake(f"{text!r} cannot be read\nput the value in quotes, and the word in others: '{key}=\"{inside}\"'")
