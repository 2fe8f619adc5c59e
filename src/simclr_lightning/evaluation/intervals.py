"""How sure a score is: intervals over test images, and over seeds."""

import math
from collections.abc import Sequence

from torch import Tensor


def bootstrap_interval(correct_n: Tensor, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap's interval of a top-1 over its test images, (low, high) in [0, 1].

    A resample of n images that are each right or wrong has a binomial number of right ones, so the quantiles
    that resampling would approach are known without it (Efron & Tibshirani 1993, chapter 13).

    Args:
        correct_n: whether each test image was right, (n,) bool.
        level: the interval's coverage.

    Raises:
        ValueError: there are no images.
    """
    n = len(correct_n)
    if n == 0:
        raise ValueError("an interval needs at least one scored image")
    from scipy.stats import binom

    share = correct_n.double().mean().item()
    low, high = binom.ppf([(1 - level) / 2, (1 + level) / 2], n, share) / n
    return float(low), float(high)


def seeds_interval(scores: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of scores of several seeds, (low, high), cut to [0, 1].

    Raises:
        ValueError: fewer than two scores.
    """
    n = len(scores)
    if n < 2:
        raise ValueError("an interval over seeds needs at least two of them")
    from scipy.stats import t

    mean = sum(scores) / n
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1))
    half = float(t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)
