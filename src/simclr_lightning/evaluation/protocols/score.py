"""What a protocol returns: scores with their predictions and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from simclr_lightning.evaluation import bootstrap_interval, seeds_interval


@dataclass(frozen=True)
class Score:
    """One line of the table.

    Args:
        key: its name in evaluation.json, before "_top1".
        title: its name in the table.
        top1: the score of each seed, fractions.
        predicted: the first seed's classes of the test images (m,).
        correct: which of them are right (m,).
        details: more for evaluation.json: what was chosen, further scores.
        files: texts to write next to evaluation.json, by name.
        seconds: how long it took.
    """

    key: str
    title: str
    top1: tuple[float, ...]
    predicted: Tensor
    correct: Tensor
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(self.top1) / len(self.top1)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: over the seeds when there are several, else the bootstrap over test images."""
        return seeds_interval(self.top1) if len(self.top1) > 1 else bootstrap_interval(self.correct)


def made_score(key: str, title: str, predicted: Sequence[Tensor], labels: Tensor, details: Mapping[str, Any]) -> Score:
    """Return the score of predicted classes, one tensor (m,) a seed, against the true ones (m,)."""
    top1 = tuple(share_of(one == labels) for one in predicted)
    return Score(key, title, top1, predicted[0], predicted[0] == labels, details)


def share_of(correct: Tensor) -> float:
    """Return the fraction of true values."""
    return correct.double().mean().item()


def needs_held_out(rows: Tensor) -> None:
    """Refuse to choose without images to choose on.

    Raises:
        ValueError: there are none.
    """
    if not len(rows):
        raise ValueError("there are too few labelled images to hold any out, and l2 and lr are chosen on those")
