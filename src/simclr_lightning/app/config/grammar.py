"""Read overrides by Hydra's grammar: KEY=VALUE, GROUP=OPTION, and several values of a sweep."""

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
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.errors import HydraException

from simclr_lightning.app.config.near_names import did_you_mean, listed
from simclr_lightning.app.config.quoting import quote_paths, quoted
from simclr_lightning.app.errors import UserError, mistake

CONFIG_NAME: Final = "train"
_REFUSED: Final = "hydra/launcher=basic"  # Hydra's own, which would run the jobs in this process
_SWAPPED: Final = str.maketrans("'\"", "\"'")
EVALUATED: Final = ("data", "model", "views")  # the groups of evaluate; conf/ has more, which are train's


@dataclass(frozen=True)
class Override:
    """One override.

    Attributes:
        text: as it is on the command line.
        parsed: Hydra's reading of it.
        is_group: whether it chooses an option of a group.
    """

    text: str
    parsed: HydraOverride
    is_group: bool = False

    @property
    def key(self) -> str:
        """The key or group, without +, ++ and ~."""
        return self.parsed.key_or_group

    @property
    def adds(self) -> bool:
        """Whether the override starts with + or ++."""
        return self.parsed.is_add() or self.parsed.is_force_add()


class Groups:
    """The groups of conf/ and of Hydra with their options, looked up when they are asked for.

    Args:
        loader: Hydra's config loader.
        overrides: all of them; ``hydra.searchpath`` among them adds options.
        name: the configuration, train or evaluate.
    """

    def __init__(self, loader: ConfigLoader, overrides: Sequence[Override], name: str = CONFIG_NAME) -> None:
        self._loader = loader
        self.name = name
        self._texts = [override.text for override in overrides if override.key == "hydra.searchpath"]
        there = tuple(group for group in self._list("", ObjectType.GROUP) if group != "hydra")
        self.own = EVALUATED if name == "evaluate" else there
        self.others = frozenset(there) - frozenset(self.own)

    def options(self, key: str) -> list[str]:
        """Return the options of a group; none when there is no such group."""
        is_group = key in self.own or key.startswith("hydra/")
        return self._list(key, ObjectType.CONFIG) if is_group else []

    def _list(self, group: str, kind: ObjectType) -> list[str]:
        return self._loader.get_group_options(group, kind, config_name=self.name, overrides=self._texts)


def parse(texts: Sequence[str], *, sweep: bool = False, loader: ConfigLoader | None = None) -> list[Override]:
    """Read every override by Hydra's grammar.

    Args:
        texts: the overrides.
        sweep: whether an override may have several values.
        loader: Hydra's config loader, which knows the options that a glob stands for.

    Raises:
        UserError: a text is not KEY=VALUE, or has several values outside a sweep.
    """
    parser = OverridesParser.create()
    overrides = []
    for text in texts:
        try:
            parsed = parser.parse_override(text)
        except (HydraException, AssertionError) as error:
            raise _unreadable(text) from error
        parsed.config_loader = loader
        key = parsed.key_or_group
        if not key:
            raise _unreadable(text)
        if parsed.is_sweep_override() and not sweep:
            raise mistake(
                f"{text}: several values for one run; add -m for a sweep\n"
                f"a list is '{key}=[a,b]', a text with commas is \"{key}='a,b'\""
            )
        overrides.append(Override(text, parsed))
    return overrides


def first_value(override: Override) -> str:
    """Return the override's text, with the first of its values when it has several.

    Raises:
        UserError: for a key of Hydra, a range or glob without a value, or an interval that is empty or endless.
    """
    parsed = override.parsed
    if not parsed.is_sweep_override():
        return override.text
    if override.key.startswith(("hydra.", "hydra/")):
        raise mistake(f"{override.text}: a key of Hydra has one value; sweep keys of the run, such as seed=0,1")
    value = _first_of(override) if parsed.is_discrete_sweep() else _start_of(override)
    return f"{parsed.get_key_element()}={value}"


def value_of(texts: Sequence[str], key: str) -> Any:
    """Return the value that the last override of a key gives it; None when there is none.

    Raises:
        UserError: an override cannot be read.
    """
    found = [one.parsed.value() for one in parse(quote_paths(texts)) if one.key == key and not one.parsed.is_delete()]
    return found[-1] if found else None


def grid(texts: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """Return the overrides of every job of Hydra's own sweeper, in its order.

    Raises:
        UserError: an override cannot be read, or gives an interval.
    """
    overrides = parse(texts, sweep=True, loader=loader)
    for override in overrides:
        if override.parsed.is_interval_sweep():
            raise mistake(f"{override.text}: an interval is not a grid; list the values, or add hydra/sweeper=optuna")
    return BasicSweeper.split_arguments([override.parsed for override in overrides], None)[0]


def varied_keys(texts: Sequence[str]) -> frozenset[str]:
    """Return the keys to which a sweep's overrides give several values."""
    last = {override.key: override for override in parse(quote_paths(texts), sweep=True)}
    return frozenset(key for key, override in last.items() if override.parsed.is_sweep_override())


def trusted_by(overrides: Sequence[Override]) -> tuple[str, ...]:
    """Return the packages that the last ``trusted=[...]`` of the command line names."""
    values = [one.parsed.value() for one in overrides if one.key == "trusted" and not one.parsed.is_delete()]
    value = values[-1] if values else []
    return tuple(str(name) for name in value) if isinstance(value, list) else ()


def check_groups(overrides: Sequence[Override], groups: Groups) -> list[Override]:
    """Check that each group gets one of its options, once; return the overrides with ``is_group`` set.

    Raises:
        UserError: naming the options and the nearest one.
    """
    chosen: dict[str, str] = {}
    checked = []
    for override in overrides:
        if override.key in groups.others:
            raise mistake(f"simclr {groups.name} takes no {override.key!r}; its groups are {listed(groups.own)}")
        value = override.parsed.value()
        options = [] if isinstance(value, dict) else groups.options(override.key)
        if override.key == "experiment" and value is None and not override.parsed.is_delete():
            checked.append(replace(parse(["~experiment"])[0], is_group=True))  # Hydra takes no null for a group
            continue
        if options:
            _check_option(override, value, options)
            if chosen.setdefault(override.key, str(value)) != str(value):
                both = f"{chosen[override.key]} and {value}"
                raise mistake(f"{override.key} is chosen twice: {both}; keep one of them")
        checked.append(replace(override, is_group=bool(options)))
    return checked


def _check_option(override: Override, value: Any, options: Sequence[str]) -> None:
    text, key = override.text, override.key
    if override.parsed.is_delete():
        raise mistake(f"{text}: {key} cannot be left out; its options are {listed(options)}")
    if override.adds:
        raise mistake(f"{text}: {key} is a group; write {text.lstrip('+')}")
    if isinstance(value, str) and value in options:
        return
    shown = text.partition("=")[2]
    options = [name for name in options if f"{key}={name}" != _REFUSED]
    hint = did_you_mean(shown.lower(), options, cutoff=0.5)
    raise mistake(f"{key}={shown}: no such option{hint}\nthe options are {listed(options)}")


def _first_of(override: Override) -> str:
    try:
        for value in override.parsed.sweep_string_iterator():
            return value
    except (HydraException, ValueError):  # a step of 0
        pass
    raise mistake(f"{override.text}: there is no value in this; a range is range(FIRST,END), a glob must fit an option")


def _start_of(override: Override) -> str:
    interval: Any = override.parsed.value()
    low, high, logarithmic = interval.start, interval.end, "log" in interval.tags
    if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (logarithmic and low <= 0):
        above = ", both above 0" if logarithmic else ""
        raise mistake(
            f"{override.text}: an interval is interval(LOW,HIGH) of two finite numbers, the lower first{above}"
        )
    return str(low)


def _unreadable(text: str) -> UserError:
    key, equals, value = text.partition("=")
    if not equals or not key:
        return mistake(f"{text!r}: an override must be KEY=VALUE, such as loss.temperature=0.5")
    inside = quoted(value.translate(_SWAPPED)).translate(_SWAPPED)  # in double quotes
    whole = shlex.quote(f"{key}={inside}")
    return mistake(f"{text!r} cannot be read\nput quotes around the value, and others around it all: {whole}")
