"""Group runs into settings: find the swept keys, compute means over seeds, and compare the best two settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simclr_lightning.overrides import key_of
from simclr_lightning.report.runs import ReportError, Run
from simclr_lightning.run_folder import as_number

# These keys, which the paper sweeps, come first on the axes of a picture.
_FIRST = ("loss.temperature", "data.batch_size")
_NO_AXIS = ("seed", "logger")  # they do not define a setting


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one run) and number of runs."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ only in their seed.

    Attributes:
        values: the values of the swept keys, in the order of the keys.
        runs: at least one.
    """

    values: tuple[Any, ...]
    runs: tuple[Run, ...]

    def spread(self, read: Callable[[Run], float | None]) -> Spread | None:
        """Return mean and standard deviation over the runs that have the number; None if no run has it."""
        return spread([value for value in map(read, self.runs) if value is not None])


@dataclass(frozen=True)
class Comparison:
    """The best and the second best setting by one score.

    Attributes:
        best: the setting with the highest mean.
        second: the setting with the second highest mean.
        difference: of their means.
        half: half the width of the 95 % interval of the difference; None if a setting has only one seed.
        test: how the interval was computed.
    """

    best: Setting
    second: Setting
    difference: float
    half: float | None
    test: str


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys given on the command line whose values differ between runs, without the seed.

    ``loss.temperature`` and ``data.batch_size`` come first, the others in the order in which they were given.
    """
    keys = dict.fromkeys(key_of(override) for run in runs for override in run.overrides)
    candidates = [key for key in keys if key.partition(".")[0] not in _NO_AXIS]
    found = [key for key in candidates if len({repr(run.value(key)) for run in runs}) > 1]
    return sorted(found, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))


def choose_axes(swept: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Return the one or two keys on the axes of the pictures.

    Args:
        swept: from `swept_keys`.
        asked: the keys that the user chose; None: the first two swept keys.

    Raises:
        ReportError: a chosen key was not swept, or not one or two keys were chosen.
    """
    if asked is None:
        return list(swept[:2])
    unknown = [key for key in asked if key not in swept]
    if unknown or not 1 <= len(asked) <= 2 or len(set(asked)) < len(asked):
        there = ", ".join(swept) or "none"
        raise ReportError(f"axes=[{','.join(asked)}]: give one or two of the swept keys: {there}")
    return list(asked)


def settings(runs: Sequence[Run], keys: Sequence[str]) -> list[Setting]:
    """Return the finished runs grouped by their values of the keys, sorted by these values."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.finished:
            groups.setdefault(tuple(repr(run.value(key)) for key in keys), []).append(run)
    made = [Setting(tuple(group[0].value(key) for key in keys), tuple(group)) for group in groups.values()]
    return sorted(made, key=lambda setting: [order(value) for value in setting.values])


def order(value: Any) -> tuple[int, float, str]:
    """Return a key to sort values: numbers first, then strings, None last."""
    number = as_number(value)
    if number is not None:
        return 0, number, ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and sample standard deviation of numbers; None if there are none.

    Example:
        >>> spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, deviation=1.0, count=3)
    """
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def compare(candidates: Sequence[Setting], read: Callable[[Run], float | None]) -> Comparison | None:
    """Compare the settings with the two highest means; return None if fewer than two have the score.

    The interval is that of the paired t-test if both settings have the same seeds, each once; else of Welch's t-test.

    Args:
        candidates: from `settings`.
        read: returns the score of a run, or None.
    """
    scored = [(found.mean, setting) for setting in candidates if (found := setting.spread(read)) is not None]
    scored.sort(key=lambda pair: -pair[0])
    if len(scored) < 2:
        return None
    (high, best), (low, second) = scored[:2]
    half, test = _interval(_by_seed(best, read), _by_seed(second, read))
    return Comparison(best, second, high - low, half, test)


def _by_seed(setting: Setting, read: Callable[[Run], float | None]) -> list[tuple[Any, float]]:
    pairs = ((run.seed, read(run)) for run in setting.runs)
    return [(seed, value) for seed, value in pairs if value is not None]


def _interval(best: list[tuple[Any, float]], second: list[tuple[Any, float]]) -> tuple[float | None, str]:
    if min(len(best), len(second)) < 2:
        return None, "one seed: no interval"
    a, b = dict(best), dict(second)
    if len(a) == len(best) and len(b) == len(second) and a.keys() == b.keys():
        differences = [a[seed] - b[seed] for seed in a]
        n = len(differences)
        return _quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n), f"paired t-test over {n} seeds"
    parts = [statistics.variance([value for _, value in part]) / len(part) for part in (best, second)]
    bottom = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (best, second), strict=True))
    freedom = sum(parts) ** 2 / bottom if bottom else 1.0
    text = f"Welch's t-test over {len(best)} and {len(second)} runs"
    return _quantile(freedom) * math.sqrt(sum(parts)), text


def _quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t distribution."""
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))
