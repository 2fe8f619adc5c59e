"""Define the numbers of a report: from which field each is read, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from simclr_lightning.report.grouping import Spread
from simclr_lightning.report.runs import Run


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    Attributes:
        key: a field of summary.json; with a slash: a column of metrics.csv, of which the last value is read.
        name: the heading of its column, with its unit.
        scale: factor by which it is multiplied before it is printed.
        digits: digits after the decimal point.
        unit: unit of a difference of two values.
    """

    key: str
    name: str
    scale: float = 1.0
    digits: int = 1
    unit: str = "points"

    def read(self, run: Run) -> float | None:
        """Return the number of a run, unscaled; None if the run does not have it."""
        return run.last(self.key) if "/" in self.key else run.number(self.key)

    def text(self, value: float | None) -> str:
        """Return a number as it is printed; a dash for None."""
        return "–" if value is None else f"{value * self.scale:.{self.digits}f}"

    def spread(self, found: Spread | None) -> str:
        """Return "mean ± standard deviation" as it is printed; a dash for None."""
        if found is None:
            return "–"
        return self.text(found.mean) + ("" if found.deviation is None else f" ± {self.text(found.deviation)}")


LINEAR: Final = Metric("linear_top1", "linear probe, top-1 %", 100)
KNN: Final = Metric("knn_top1", "kNN, top-1 %", 100)
# Names that ``select`` accepts and whose scores are fractions, printed in percent.
_SHARES: Final = {
    "knn_top1": "kNN on held-out train, top-1 %",
    "linear_top1": "linear probe on held-out train, top-1 %",
    "contrastive_accuracy": "contrastive accuracy on held-out train, %",
    "neighbour_agreement": "neighbor agreement on held-out train, %",
}
ACCURACY: Final = Metric("contrastive_accuracy", "contrastive accuracy, %", 100)
ENTROPY: Final = Metric("contrastive_entropy", "contrastive entropy, nats", digits=2)
HARDNESS: Final = (
    Metric("train/hardest_1", "gradient on the hardest 1 % of negatives, %", 100),
    Metric("train/hardest_10", "gradient on the hardest 10 % of negatives, %", 100),
    Metric("train/effective_negatives", "effective number of negatives"),
    Metric("train/same_class_hardest_10", "same class among the hardest 10 % of negatives, %", 100),
    Metric("train/same_class_all", "same class among all negatives, %", 100),
)
TABLE: Final = (Metric("loss", "loss, nats", digits=3), ACCURACY, ENTROPY)
PROGRESS: Final = (
    Metric("steps", "steps", digits=0),
    Metric("epochs", "epochs", digits=2),
    Metric("images_per_second", "images/s", digits=0),
    Metric("seconds", "seconds", digits=0),
)


def scores(runs: list[Run]) -> list[Metric]:
    """Return the scores that at least one run has, the most important first; higher is better."""
    return known((LINEAR, KNN, held_out(runs)), runs)


def held_out(runs: list[Run]) -> Metric:
    """Return the score on the held-out part of train that a sweeper maximizes, which ``select`` names."""
    names = {str(run.config.get("select", "auto")) for run in runs}
    name = names.pop() if len(names) == 1 else "mixed"
    if name == "auto":
        name = "held_out_loss" if all(KNN.read(run) is None for run in runs) else "knn_top1"
    if name in _SHARES:
        return Metric("held_out_score", _SHARES[name], 100)
    if name == "held_out_loss":
        return Metric("held_out_score", "minus NT-Xent on held-out train, nats", digits=3, unit="nats")
    return Metric("held_out_score", f"held-out score ({name.replace('_', ' ')})", digits=3, unit="")


def known(metrics: tuple[Metric, ...], runs: list[Run]) -> list[Metric]:
    """Return the metrics that at least one run has."""
    return [metric for metric in metrics if any(metric.read(run) is not None for run in runs)]


def setting_text(keys: list[str], values: tuple[Any, ...]) -> str:
    """Return a setting as it is typed on the command line."""
    return ", ".join(f"{key}={shown(value)}" for key, value in zip(keys, values, strict=True))


def shown(value: Any) -> str:
    """Return a value as it is typed on the command line; "(default)" for None."""
    return f"{value:g}" if isinstance(value, float) else "(default)" if value is None else str(value)
