"""A few labels, the same number of every class: the semi-supervised protocol's part of train."""

import torch
from torch import Tensor

from simclr_lightning.random import permutation

SUBSET_STREAM = -3  # `permutation` orders epochs with 0, 1, 2, ...; -1 and -2 choose the held-out and test parts


def balanced_subset(labels_n: Tensor, *, fraction: float, seed: int) -> Tensor:
    """Sorted indices (m,) int64 of a class-balanced share of the labelled images (paper, section 4.4).

    Every class gives the same number, round(fraction * labelled / classes) and at least 1, or all it has
    when that is fewer. A larger share of the same seed holds every smaller one.

    Args:
        labels_n: (n,) int64 classes; images labelled -1 are not chosen.
        fraction: above 0 and at most 1, of all labelled images.
        seed: the choice's seed.

    Raises:
        ValueError: no image has a label, or the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of labels is {fraction}; it must be above 0 and at most 1")
    order_n = permutation(len(labels_n), seed=seed, epoch=SUBSET_STREAM)
    order_n = order_n[labels_n[order_n] >= 0]
    classes = labels_n[order_n].unique()
    if not len(classes):
        raise ValueError("no image has a label: there is no subset to choose")
    each = max(1, round(fraction * len(order_n) / len(classes)))
    return torch.cat([order_n[labels_n[order_n] == c][:each] for c in classes]).sort().values
