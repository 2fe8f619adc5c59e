"""Define `Score`, which a protocol returns: top-1 with its predictions and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from simclr_lightning.evaluation import bootstrap_interval, seeds_interval


@dataclass(frozen=True)
class Score:
    """A score of one protocol: one line of the table.

    Args:
        key: its name in evaluation.json, before "_top1".
        title: its name in the table.
        top1: one score per seed, as fractions.
        predicted: (m,) int64, classes that the first seed predicts for the test images.
        correct: (m,) bool, whether each prediction is correct.
        details: further keys of evaluation.json, such as chosen values.
        files: texts to write next to evaluation.json, by file name.
        seconds: the time of the protocol.
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
        """Return the mean over the seeds."""
        return sum(self.top1) / len(self.top1)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval: over the seeds if there are several, else the bootstrap over test images."""
        return seeds_interval(self.top1) if len(self.top1) > 1 else bootstrap_interval(self.correct)


def made_score(key: str, title: str, predicted: Sequence[Tensor], labels: Tensor, details: Mapping[str, Any]) -> Score:
    """Return the score of predicted classes, one tensor (m,) per seed, against the true classes (m,)."""
    top1 = tuple(share_of(one == labels) for one in predicted)
    return Score(key, title, top1, predicted[0], predicted[0] == labels, details)


def share_of(correct: Tensor) -> float:
    """Return the fraction of true values."""
    return correct.double().mean().item()


def needs_held_out(rows: Tensor) -> None:
    """Check that there are held-out images, which a protocol needs to choose a value.

    Raises:
        ValueError: ``rows`` is empty.
    """
    if not len(rows):
        raise ValueError("there are too few labeled images to hold some out, which are needed to choose l2 and lr")
