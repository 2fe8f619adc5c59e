"""List published scores, which the table of an evaluation shows for the same data, architecture and protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Published:
    """A published top-1, as a fraction, and its source."""

    top1: float
    source: str


_AUTHORS_CIFAR: Final = Published(0.91, "authors' README, 1000 epochs")
_BEST_CIFAR_KNN: Final = Published(0.914, "best public kNN, 1000 epochs")
_PAPER_CIFAR_50: Final = Published(0.940, "paper, appendix B.9, 1000 epochs")
_PAPER_IMAGENET: Final = Published(0.691, "paper, table B.1, batch 8192, 800 epochs")

# The published scores on CIFAR-10 use the CIFAR stem, those on ImageNet the ImageNet stem.
_STEMS: Final = {"cifar10": "cifar", "imagenet": "imagenet"}
# (data, depth of a ResNet of width 1, key of evaluation.json without _top1)
_FIGURES: Final[dict[tuple[str, int, str], Published]] = {
    ("cifar10", 18, "linear"): _AUTHORS_CIFAR,
    ("cifar10", 18, "linear_sgd"): _AUTHORS_CIFAR,
    ("cifar10", 18, "knn"): _BEST_CIFAR_KNN,
    ("cifar10", 50, "linear"): _PAPER_CIFAR_50,
    ("cifar10", 50, "linear_sgd"): _PAPER_CIFAR_50,
    ("imagenet", 50, "linear"): _PAPER_IMAGENET,
    ("imagenet", 50, "linear_sgd"): _PAPER_IMAGENET,
}


def published(data: str, spec: Mapping[str, Any], key: str) -> Published | None:
    """Return the published score for a data set's name, an encoder's ``spec`` and a score's key; None if unknown."""
    if spec.get("factory") != "resnet" or spec.get("width") != 1 or spec.get("stem") != _STEMS.get(data):
        return None
    return _FIGURES.get((data, int(spec["depth"]), key))
