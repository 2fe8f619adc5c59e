"""Compute NT-Xent, the contrastive loss of SimCLR, without building the matrix of similarities.

Shapes: n pairs on this rank, N pairs on all ranks, D the width of z.

docs/ntxent.md derives the algorithm. "The paper" is SimCLR; section 2.1 has equation 1 and Algorithm 1.
"""

import math
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor, nn

from simclr_lightning.ntxent.objectives import Objective
from simclr_lightning.ntxent.operator import compute


class NTXentOutput(NamedTuple):
    """The four scalars that ``nt_xent`` returns; only ``loss`` has a gradient."""

    loss: Tensor
    """NT-Xent, mean over the 2N rows, in nats."""
    accuracy: Tensor
    """Fraction of rows whose positive is more similar than the N - 1 other candidates in the other view."""
    entropy: Tensor
    """Entropy of the softmax over these N candidates, mean over the rows, in nats; from 0 to ln N."""
    entropy_all: Tensor
    """Entropy of the softmax over all 2N - 1 candidates; its exponential is the effective number of candidates."""


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
) -> NTXentOutput:
    """Compute the normalized temperature-scaled cross entropy of n pairs (z_a[i], z_b[i]), in nats.

    In an initialized process group the candidates are the rows of all ranks; their local batches may differ in size.
    The mean over ranks of each returned value is its value on the global batch. Averaging the gradient over ranks, as
    DDP does, gives the gradient of the global loss. Memory is linear in N. The forward pass computes the gradient, so
    the backward pass communicates nothing. Source: paper section 2.1, equation 1.

    Args:
        z_a: (n, D) projections of the first view, floating point. Rows may have any norm; they are normalized here. A
            row with a norm below 1e-12 has cosine 0 with every row and gradient 0. Float64 is computed in float64, all
            other types in float32, also under autocast.
        z_b: (n, D) projections of the second view; row i is the positive of row i of ``z_a``.
        temperature: divisor of the cosines, above 0; the paper uses 0.05 to 1.
        group: the process group; None for all processes.
        gather: False compares only the rows of this rank.

    Returns:
        Four scalars, float64 if ``z_a`` or ``z_b`` is, else float32.

    Raises:
        ValueError: a shape, a dtype or the temperature is wrong, no rank has rows, or ``group`` lacks this process.
        RuntimeError: the gradient is differentiated again.

    >>> import torch
    >>> z = torch.eye(4)
    >>> output = nt_xent(z, z, temperature=0.1)
    >>> f"{output.loss:.4f} {output.accuracy:.0f}"
    '0.0003 1'
    """
    check(z_a, z_b, temperature)
    return NTXentOutput(*compute(z_a, z_b, temperature, Objective(), group=group, gather=gather))


class NTXent(nn.Module):
    """Compute NT-Xent at a fixed temperature; a module without parameters.

    Args:
        temperature: divisor of the cosines, above 0.
        gather: False compares only the rows of this rank.

    Raises:
        ValueError: the temperature is not above 0 and finite.
    """

    def __init__(self, temperature: float, gather: bool = True) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = float(temperature)
        self.gather = gather

    def forward(self, z_a: Tensor, z_b: Tensor) -> NTXentOutput:
        """Return the loss of z_a and z_b, both (n, D), with its metrics; see ``nt_xent``."""
        return nt_xent(z_a, z_b, self.temperature, gather=self.gather)

    def extra_repr(self) -> str:
        """Return the text inside the brackets of ``repr``."""
        return f"temperature={self.temperature}, gather={self.gather}"


def check_temperature(temperature: float) -> None:
    """Raise ValueError if a temperature is not above 0 and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"loss.temperature is {temperature}; it must be above 0 and finite, for example 0.1")


def check(z_a: Tensor, z_b: Tensor, temperature: float) -> None:
    """Check the shapes and dtypes of both projections, and the temperature.

    Raises:
        ValueError: one of them is wrong.
    """
    check_temperature(temperature)
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        shapes = f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        raise ValueError(f"z_a and z_b must have one shape (n, D), with row i of both from one image, not {shapes}")
    if not (z_a.is_floating_point() and z_b.is_floating_point()):
        raise ValueError(f"z_a and z_b must have a floating-point dtype, not {z_a.dtype} and {z_b.dtype}")
