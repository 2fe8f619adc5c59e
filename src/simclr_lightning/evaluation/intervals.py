"""Confidence intervals of a score: over test images, and over seeds."""

import math
from collections.abc import Sequence

from torch import Tensor


def bootstrap_interval(correct_n: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a top-1 accuracy over test images, (low, high) in [0, 1].

    The number of correct images in a resample is binomial, so its quantiles are computed exactly and no resampling is
    needed (Efron & Tibshirani 1993, chapter 13).

    Args:
        correct_n: whether the prediction of each test image is correct, (n,) bool.
        level: coverage of the interval, in (0, 1).

    Raises:
        ValueError: n is 0.

    Example:
        >>> import torch
        >>> bootstrap_interval(torch.arange(100) < 80)
        (0.72, 0.88)
    """
    n = len(correct_n)
    if n == 0:
        raise ValueError("an interval needs at least one scored image")
    from scipy.stats import binom

    share = correct_n.double().mean().item()
    low, high = binom.ppf([(1 - level) / 2, (1 + level) / 2], n, share) / n
    return float(low), float(high)


def seeds_interval(scores: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of the mean score of several seeds, (low, high), clipped to [0, 1].

    Args:
        scores: one score in [0, 1] for each seed.
        level: coverage of the interval, in (0, 1).

    Raises:
        ValueError: there are fewer than two scores.
    """
    n = len(scores)
    if n < 2:
        raise ValueError("an interval over seeds needs the scores of at least two seeds")
    from scipy.stats import t

    mean = sum(scores) / n
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1))
    half = float(t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)
