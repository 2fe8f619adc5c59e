"""The figures of a report: where each is read, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from simclr_lightning.report.grouping import Spread
from simclr_lightning.report.runs import Run


@dataclass(frozen=True)
class Figure:
    """One number of a run.

    Attributes:
        key: a field of summary.json, or with a slash a column of metrics.csv, whose last value counts.
        name: as a heading says it, with its unit.
        scale: what it is multiplied by when it is shown.
        digits: after the point.
        unit: of a difference.
    """

    key: str
    name: str
    scale: float = 1.0
    digits: int = 1
    unit: str = "points"

    def read(self, run: Run) -> float | None:
        """The number itself, unscaled."""
        return run.last(self.key) if "/" in self.key else run.number(self.key)

    def text(self, value: float | None) -> str:
        """A number as it is shown."""
        return "–" if value is None else f"{value * self.scale:.{self.digits}f}"

    def spread(self, found: Spread | None) -> str:
        """Mean ± standard deviation as they are shown."""
        if found is None:
            return "–"
        return self.text(found.mean) + ("" if found.deviation is None else f" ± {self.text(found.deviation)}")


LINEAR: Final = Figure("linear_top1", "linear probe, top-1 %", 100)
KNN: Final = Figure("knn_top1", "kNN, top-1 %", 100)
# What `select` may name, as shares; other scores are what they are, with the sign under which higher is better.
_SHARES: Final = {
    "knn_top1": "kNN on held-out train, top-1 %",
    "linear_top1": "linear probe on held-out train, top-1 %",
    "contrastive_accuracy": "contrastive accuracy on held-out train, %",
    "neighbour_agreement": "neighbour agreement on held-out train, %",
}
ACCURACY: Final = Figure("contrastive_accuracy", "contrastive accuracy, %", 100)
ENTROPY: Final = Figure("contrastive_entropy", "contrastive entropy, nats", digits=2)
HARDNESS: Final = (
    Figure("train/hardest_1", "gradient on the hardest 1 % of negatives, %", 100),
    Figure("train/hardest_10", "gradient on the hardest 10 % of negatives, %", 100),
    Figure("train/effective_negatives", "effective number of negatives"),
    Figure("train/same_class_hardest_10", "own class among the hardest 10 %, %", 100),
    Figure("train/same_class_all", "own class among all negatives, %", 100),
)
TABLE: Final = (Figure("loss", "loss, nats", digits=3), ACCURACY, ENTROPY)
PROGRESS: Final = (
    Figure("steps", "steps", digits=0),
    Figure("epochs", "epochs", digits=2),
    Figure("images_per_second", "images/s", digits=0),
    Figure("seconds", "seconds", digits=0),
)


def scores(runs: list[Run]) -> list[Figure]:
    """The scores that any of the runs has, the one that picks the winner first; higher is better."""
    return known((LINEAR, KNN, held_out(runs)), runs)


def held_out(runs: list[Run]) -> Figure:
    """The score that a sweeper maximises, on the held-out part of train: the one that ``select`` names."""
    names = {str(run.config.get("select", "auto")) for run in runs}
    name = names.pop() if len(names) == 1 else "mixed"
    if name == "auto":
        name = "held_out_loss" if all(KNN.read(run) is None for run in runs) else "knn_top1"
    if name in _SHARES:
        return Figure("held_out_score", _SHARES[name], 100)
    if name == "held_out_loss":
        return Figure("held_out_score", "minus NT-Xent on held-out train, nats", digits=3, unit="nats")
    return Figure("held_out_score", f"held-out score ({name.replace('_', ' ')})", digits=3, unit="")


def known(figures: tuple[Figure, ...], runs: list[Run]) -> list[Figure]:
    """The figures that any of the runs has."""
    return [figure for figure in figures if any(figure.read(run) is not None for run in runs)]


def setting_text(keys: list[str], values: tuple[Any, ...]) -> str:
    """A setting as it would be typed."""
    return ", ".join(f"{key}={shown(value)}" for key, value in zip(keys, values, strict=True))


def shown(value: Any) -> str:
    """A value as it would be typed."""
    return f"{value:g}" if isinstance(value, float) else "(default)" if value is None else str(value)
