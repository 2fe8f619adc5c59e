"""Parse overrides with Hydra's grammar: KEY=VALUE, GROUP=OPTION, and the values of a sweep.

`simclr_lightning.overrides` is the simpler module: it splits an override at its first "=", without Hydra.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override as HydraOverride
from hydra.errors import HydraException

from simclr_lightning.app.config.quoting import quote_paths, quoted
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.near_names import did_you_mean, listed
from simclr_lightning.overrides import key_of

CONFIG_NAME: Final = "train"
SEARCH_PATH: Final = "hydra.searchpath"
_REFUSED: Final = "hydra/launcher=basic"  # Hydra's own, which would run the jobs in this process
_GONE: Final = {"logger=neptune": "; Lightning has no logger for Neptune any more, whose service has ended"}
_SWAPPED: Final = str.maketrans("'\"", "\"'")
EVALUATED: Final = ("data", "model", "views")  # the groups of `simclr evaluate`; the others in conf/ are for training


@dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        text: the override as typed.
        parsed: the result of Hydra's parser.
        is_group: whether the override chooses an option of a group.
    """

    text: str
    parsed: HydraOverride
    is_group: bool = False

    @property
    def key(self) -> str:
        """Return the key or group, without +, ++ and ~."""
        return self.parsed.key_or_group

    @property
    def adds(self) -> bool:
        """Return whether the override starts with + or ++."""
        return self.parsed.is_add() or self.parsed.is_force_add()


class Groups:
    """List the groups of conf/ and of Hydra, and the options of each.

    Args:
        loader: Hydra's config loader.
        overrides: all overrides of the command line; ``hydra.searchpath=[...]`` adds options.
        name: the main file in conf/, train or evaluate.
    """

    def __init__(self, loader: ConfigLoader, overrides: Sequence[Override], name: str = CONFIG_NAME) -> None:
        self._loader = loader
        self.name = name
        self._texts = [override.text for override in overrides if override.key == SEARCH_PATH]
        there = tuple(group for group in self._list("", ObjectType.GROUP) if group != "hydra")
        ours = loader.get_group_options("", ObjectType.GROUP, config_name=name, overrides=[])
        self.users = frozenset(there) - frozenset(ours)  # no default chooses an option of them
        self.own = EVALUATED if name == "evaluate" else there
        self.others = frozenset(there) - frozenset(self.own)

    def options(self, key: str) -> list[str]:
        """Return the options of a group; empty if there is no such group."""
        is_group = key in self.own or key.startswith("hydra/")
        return self._list(key, ObjectType.CONFIG) if is_group else []

    def _list(self, group: str, kind: ObjectType) -> list[str]:
        return self._loader.get_group_options(group, kind, config_name=self.name, overrides=self._texts)


def parse(texts: Sequence[str], *, sweep: bool = False, loader: ConfigLoader | None = None) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Args:
        texts: the overrides.
        sweep: whether an override may have several values.
        loader: Hydra's config loader, needed to expand ``glob(...)`` into the options of a group; the folders in
            ``hydra.searchpath`` add options.

    Raises:
        UserError: a text is not KEY=VALUE, or has several values without ``sweep``.
    """
    parser, overrides = OverridesParser.create(), list[Override]()
    options = None if loader is None else _Options(loader, [text for text in texts if key_of(text) == SEARCH_PATH])
    for text in texts:
        try:
            parsed = parser.parse_override(text)
        except (HydraException, AssertionError) as error:
            raise _unreadable(text) from error
        parsed.config_loader = options  # type: ignore[assignment]  # Hydra calls this one method
        key = parsed.key_or_group
        if not key:
            raise _unreadable(text)
        if parsed.is_sweep_override() and not sweep:
            raise mistake(
                f"{text}: one run takes one value; add -m for a sweep\n"
                f"write a list as '{key}=[a,b]', and a text with commas as \"{key}='a,b'\""
            )
        overrides.append(Override(text, parsed))
    return overrides


class _Options:
    """Hydra's config loader, which finds the options in the folders of ``hydra.searchpath`` too."""

    def __init__(self, loader: ConfigLoader, texts: list[str]) -> None:
        self._loader, self._texts = loader, texts

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        return self._loader.get_group_options(group_name, results_filter, CONFIG_NAME, self._texts)


def expanded(override: Override) -> str:
    """Return an override as text, with ``glob(...)`` as a list of options: sweepers differ in what they read.

    Raises:
        UserError: no option matches.
    """
    if not isinstance(override.parsed.value(), Glob):
        return override.text
    first_value(override)
    return f"{override.parsed.get_key_element()}={','.join(override.parsed.sweep_string_iterator())}"


def first_value(override: Override) -> str:
    """Return an override as text; if it has several values, with the first one.

    Raises:
        UserError: a key of Hydra has several values, a range or glob has none, or an interval is empty or infinite.
    """
    parsed = override.parsed
    if not parsed.is_sweep_override():
        return override.text
    if override.key.startswith(("hydra.", "hydra/")):
        raise mistake(f"{override.text}: a key of Hydra takes one value; sweep a key of the run, such as seed=0,1")
    value = _first_of(override) if parsed.is_discrete_sweep() else _start_of(override)
    return f"{parsed.get_key_element()}={value}"


def value_of(texts: Sequence[str], key: str) -> Any:
    """Return the value in the last override of a key; None if no override sets it.

    Raises:
        UserError: an override cannot be parsed.
    """
    found = [one.parsed.value() for one in parse(quote_paths(texts)) if one.key == key and not one.parsed.is_delete()]
    return found[-1] if found else None


def grid(texts: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """Return the overrides of each job of a grid, in the order of Hydra's basic sweeper.

    Raises:
        UserError: an override cannot be parsed, or its value is an interval.
    """
    overrides = parse(texts, sweep=True, loader=loader)
    for override in overrides:
        if override.parsed.is_interval_sweep():
            raise mistake(f"{override.text}: a grid has no intervals; list the values, or add hydra/sweeper=optuna")
    return BasicSweeper.split_arguments([override.parsed for override in overrides], None)[0]


def varied_keys(texts: Sequence[str]) -> frozenset[str]:
    """Return the keys that have several values in the overrides of a sweep."""
    last = {override.key: override for override in parse(quote_paths(texts), sweep=True)}
    return frozenset(key for key, override in last.items() if override.parsed.is_sweep_override())


def trusted_by(overrides: Sequence[Override]) -> tuple[str, ...]:
    """Return the packages in the last override ``trusted=[...]``."""
    values = [one.parsed.value() for one in overrides if one.key == "trusted" and not one.parsed.is_delete()]
    value = values[-1] if values else []
    return tuple(str(name) for name in value) if isinstance(value, list) else ()


def check_groups(overrides: Sequence[Override], groups: Groups) -> list[Override]:
    """Check that each group is set at most once, to one of its options; return the overrides with ``is_group`` set.

    Raises:
        UserError: the message lists the options and names the nearest one.
    """
    chosen: dict[str, str] = {}
    checked = []
    for override in overrides:
        if override.key in groups.others:
            raise mistake(f"simclr {groups.name} has no group {override.key!r}; its groups are {listed(groups.own)}")
        value = override.parsed.value()
        options = [] if isinstance(value, dict) else groups.options(override.key)
        if override.key == "early_stopping" and value is None and not override.parsed.is_delete():
            continue  # the default
        if override.key == "experiment" and value is None and not override.parsed.is_delete():
            checked.append(replace(parse(["~experiment"])[0], is_group=True))  # Hydra does not accept GROUP=null
            continue
        if options:
            _check_option(override, value, options, must_add=override.key in groups.users)
            if chosen.setdefault(override.key, str(value)) != str(value):
                both = f"{chosen[override.key]} and {value}"
                raise mistake(f"{override.key} is chosen twice: {both}; remove one of them")
        checked.append(replace(override, is_group=bool(options)))
    return checked


def _check_option(override: Override, value: Any, options: Sequence[str], *, must_add: bool) -> None:
    text, key = override.text, override.key
    if override.parsed.is_delete():
        raise mistake(f"{text}: {key} cannot be removed; its options are {listed(options)}")
    if override.adds != must_add:
        what = f"no default chooses an option of {key}" if must_add else f"{key} is a group"
        raise mistake(f"{text}: {what}; write {'+' * must_add}{text.lstrip('+')}")
    several = value if isinstance(value, list) and value and key == "logger" else [value]
    if all(isinstance(one, str) and one in options for one in several):
        return
    shown = text.partition("=")[2]
    options = [name for name in options if f"{key}={name}" != _REFUSED]
    hint = _GONE.get(f"{key}={shown}") or did_you_mean(shown.lower(), options, cutoff=0.5)
    raise mistake(f"{key}={shown}: no such option{hint}\nthe options are {listed(options)}")


def _first_of(override: Override) -> str:
    try:
        for value in override.parsed.sweep_string_iterator():
            return value
    except (HydraException, ValueError):  # a step of 0
        pass
    raise mistake(
        f"{override.text} has no values; write range(FIRST,END) with FIRST below END, or a glob that matches an option"
    )


def _start_of(override: Override) -> str:
    interval: Any = override.parsed.value()
    low, high, logarithmic = interval.start, interval.end, "log" in interval.tags
    if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (logarithmic and low <= 0):
        above = ", both above 0" if logarithmic else ""
        raise mistake(f"{override.text}: write interval(LOW,HIGH) with two finite numbers, the lower one first{above}")
    return str(low)


def _unreadable(text: str) -> UserError:
    key, equals, value = text.partition("=")
    if not equals or not key:
        return mistake(f"{text!r}: an override must be KEY=VALUE, such as loss.temperature=0.5")
    inside = quoted(value.translate(_SWAPPED)).translate(_SWAPPED)  # in double quotes
    whole = shlex.quote(f"{key}={inside}")
    return mistake(
        f"{text!r} cannot be parsed\nput the value in quotes, and the whole override in other quotes: {whole}"
    )
