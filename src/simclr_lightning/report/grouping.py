"""From runs to settings: which keys were swept, means and spreads over seeds, and what won."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simclr_lightning.overrides import key_of
from simclr_lightning.report.runs import ReportError, Run
from simclr_lightning.run_folder import as_number

# The paper's two, in its order, come first on the axes of a picture.
_FIRST = ("loss.temperature", "data.batch_size")
_NO_AXIS = ("seed", "logger")  # repeats, and where the numbers go


@dataclass(frozen=True)
class Spread:
    """The mean of some runs, with their standard deviation (None for one run)."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Setting:
    """The finished runs that differ in their seed alone.

    Attributes:
        values: what the swept keys are, in their order.
        runs: at least one.
    """

    values: tuple[Any, ...]
    runs: tuple[Run, ...]

    def of(self, read: Callable[[Run], float | None]) -> Spread | None:
        """Mean and sample standard deviation over the runs that have the number; None where none has."""
        return spread([value for value in map(read, self.runs) if value is not None])


@dataclass(frozen=True)
class Comparison:
    """The best setting beside the second best, by one score.

    Attributes:
        half: half the width of the 95 % interval of the difference; None where a setting has one seed.
        test: how the interval was made.
    """

    best: Setting
    second: Setting
    difference: float
    half: float | None
    test: str


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Keys of the command line whose value differs between runs, the seed left out: temperature and batch first."""
    keys = dict.fromkeys(key_of(override) for run in runs for override in run.overrides)
    told = [key for key in keys if key.partition(".")[0] not in _NO_AXIS]
    found = [key for key in told if len({repr(run.value(key)) for run in runs}) > 1]
    return sorted(found, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))


def choose_axes(swept: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """The one or two keys that span the pictures.

    Raises:
        ReportError: an asked key was not swept, or more than two are asked for.
    """
    if asked is None:
        return list(swept[:2])
    unknown = [key for key in asked if key not in swept]
    if unknown or not 1 <= len(asked) <= 2 or len(set(asked)) < len(asked):
        there = ", ".join(swept) or "none"
        raise ReportError(f"axes=[{','.join(asked)}]: give one or two of the swept keys, which are {there}")
    return list(asked)


def settings(runs: Sequence[Run], keys: Sequence[str]) -> list[Setting]:
    """Finished runs grouped by what the keys are, in the order of their values."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.finished:
            groups.setdefault(tuple(repr(run.value(key)) for key in keys), []).append(run)
    made = [Setting(tuple(group[0].value(key) for key in keys), tuple(group)) for group in groups.values()]
    return sorted(made, key=lambda setting: [order(value) for value in setting.values])


def order(value: Any) -> tuple[int, float, str]:
    """Sorts numbers as numbers, before texts, before what is missing."""
    number = as_number(value)
    if number is not None:
        return 0, number, ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def compare(candidates: Sequence[Setting], read: Callable[[Run], float | None]) -> Comparison | None:
    """The setting with the highest mean beside the next one; None where fewer than two have the score.

    The interval is of the paired t-test where both settings ran the same seeds, each once, else of Welch's.
    """
    scored = [(found.mean, setting) for setting in candidates if (found := setting.of(read)) is not None]
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
    """The 97.5 % quantile of Student's t."""
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))
