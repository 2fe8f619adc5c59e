"""Tables of the paper (A Simple Framework for Contrastive Learning, arXiv 2002.05709), to compare a sweep with.

ImageNet, ResNet-50, 100 epochs, linear evaluation; scores are top-1 in percent.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SOURCE: Final = "Chen, Kornblith, Norouzi, Hinton 2020, arXiv 2002.05709: ImageNet, ResNet-50, 100 epochs"


class AtTemperature(NamedTuple):
    """A row of table 5, with l2 normalization and batch size 4096."""

    linear: float
    contrastive_accuracy: float
    entropy: float
    """In nats, over the candidates in the other view: at most ln 4096 = 8.3."""


class AtBatch(NamedTuple):
    """A row of table B.1 at 100 epochs, for the two learning-rate rules."""

    linear_rule: float
    sqrt_rule: float


TEMPERATURES: Final = {
    0.05: AtTemperature(59.7, 90.5, 1.0),
    0.1: AtTemperature(64.4, 87.8, 4.5),
    0.5: AtTemperature(60.7, 68.2, 8.2),
    1.0: AtTemperature(58.0, 59.1, 8.3),
}
BATCHES: Final = {
    256: AtBatch(57.5, 62.8),
    512: AtBatch(60.7, 63.8),
    1024: AtBatch(62.8, 64.3),
    2048: AtBatch(64.0, 64.7),
    4096: AtBatch(64.6, 64.5),
    8192: AtBatch(64.8, 64.8),
}
