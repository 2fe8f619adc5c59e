"""Draw a class-balanced part of the labels, for the semi-supervised protocol."""

import torch
from torch import Tensor

from simclr_lightning.random import permutation

SUBSET_STREAM = -3  # the ``epoch`` of `permutation`; 0, 1, ... order epochs, -1 and -2 draw the held-out and test parts


def balanced_subset(labels_n: Tensor, *, fraction: float, seed: int) -> Tensor:
    """Return sorted indices (m,) int64 of a class-balanced subset of the labeled images (paper, section 4.4).

    Each class gives max(1, round(fraction * labeled images / classes)) images, or all that it has if these are fewer.
    With the same seed, a larger subset contains every smaller one.

    Args:
        labels_n: (n,) int64 classes; images with label -1 are never chosen.
        fraction: in (0, 1], of all labeled images.
        seed: of the random choice.

    Raises:
        ValueError: no image has a label, or the fraction is out of range.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, -1])
        >>> labels[balanced_subset(labels, fraction=0.5, seed=0)]
        tensor([0, 0, 1, 1])
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of labels is {fraction}: it must be above 0 and at most 1")
    order_n = permutation(len(labels_n), seed=seed, epoch=SUBSET_STREAM)
    order_n = order_n[labels_n[order_n] >= 0]
    classes = labels_n[order_n].unique()
    if not len(classes):
        raise ValueError("no image has a label, so there is no subset to choose")
    each = max(1, round(fraction * len(order_n) / len(classes)))
    return torch.cat([order_n[labels_n[order_n] == c][:each] for c in classes]).sort().values
