"""Normalize the input inside an encoder, so that images are in [0, 1] everywhere else."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Map images x (N, 3, H, W) to (x - mean) / std per channel, or to x without mean and std.

    Mean and std are not in the state dict.

    Args:
        mean: three numbers on the scale of [0, 1], or None for no normalization.
        std: three numbers above 0, or None if ``mean`` is None.

    Raises:
        ValueError: only one of them is None, or one is not three finite numbers (std above 0).

    >>> Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))(torch.ones(1, 3, 1, 1)).flatten()
    tensor([2., 2., 2.])
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("std", None, persistent=False)
        self.set(mean, std)

    def set(
        self,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        *,
        like: Tensor | None = None,
    ) -> None:
        """Replace mean and std, on the device and in the dtype of ``like``; None for torch's defaults."""
        if (mean is None) != (std is None):
            raise ValueError("only one of mean and std is set; set both or neither")
        if mean is None or std is None:
            self.mean = self.std = None
            return
        try:
            mean, std = [float(value) for value in mean], [float(value) for value in std]
        except (TypeError, ValueError):
            raise ValueError("mean and std must each be three numbers") from None
        if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError(f"mean={mean} and std={std}: each must be three finite numbers, std above 0")
        self.mean = _per_channel(mean, like)
        self.std = _per_channel(std, like)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the normalized images, in the same shape."""
        if self.mean is None or self.std is None:
            return x_NCHW
        return (x_NCHW - self.mean) / self.std


def _per_channel(values: Sequence[float], like: Tensor | None) -> Tensor:
    tensor = torch.tensor(values).view(-1, 1, 1)
    return tensor if like is None else tensor.to(like)
