"""Compute NT-Xent, the contrastive loss of SimCLR, without building the matrix of similarities.

Shapes: n pairs on this rank, N pairs on all ranks, D the width of z. A leading 2 stands for the two views, so the 2N
rows of the paper are v_2ND. A block holds the logits of some rows (R) with some columns (C). Internal logits are in
base 2, cosine / (temperature * ln 2), because ``exp2`` is faster than ``exp``; returned values are in nats.

docs/ntxent.md derives the algorithm. "The paper" is SimCLR; section 2.1 has equation 1 and Algorithm 1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simclr_lightning import distributed
from simclr_lightning.ntxent.blocks import Blocks, normalize, through_normalization

# Up to this many pairs, compute in float64. The cost is negligible, and in so small a batch one pair can dominate the
# gradient: a small temperature would then amplify the rounding error of its cosine.
SMALL_BATCH = 64


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

    >>> z = torch.eye(4)
    >>> output = nt_xent(z, z, temperature=0.1)
    >>> f"{output.loss:.4f} {output.accuracy:.0f}"
    '0.0003 1'
    """
    _check(z_a, z_b, temperature)
    gradient = torch.is_grad_enabled() and (z_a.requires_grad or z_b.requires_grad)
    loss, *figures, _ = _operator(z_a, z_b, float(temperature), gradient, gather, _name(group))
    return NTXentOutput(loss, *(figure.detach() for figure in figures))


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
        _check_temperature(temperature)
        self.temperature = float(temperature)
        self.gather = gather

    def forward(self, z_a: Tensor, z_b: Tensor) -> NTXentOutput:
        """Return the loss of z_a and z_b, both (n, D), with its metrics; see ``nt_xent``."""
        return nt_xent(z_a, z_b, self.temperature, gather=self.gather)

    def extra_repr(self) -> str:
        """Return the text inside the brackets of ``repr``."""
        return f"temperature={self.temperature}, gather={self.gather}"


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"loss.temperature is {temperature}; it must be above 0 and finite, for example 0.1")


def _check(z_a: Tensor, z_b: Tensor, temperature: float) -> None:
    _check_temperature(temperature)
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        shapes = f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        raise ValueError(f"z_a and z_b must have one shape (n, D), with row i of both from one image, not {shapes}")
    if not (z_a.is_floating_point() and z_b.is_floating_point()):
        raise ValueError(f"z_a and z_b must have a floating-point dtype, not {z_a.dtype} and {z_b.dtype}")


# A custom operator takes plain values only, so a process group is passed by its name.
_groups: dict[str, dist.ProcessGroup] = {}


def _name(group: dist.ProcessGroup | None) -> str:
    if group is None:
        return ""
    distributed.rank(group)  # raises ValueError in a process that is not in the group
    _groups[group.group_name] = group
    return group.group_name


def _compute(
    z_a: Tensor, z_b: Tensor, temperature: float, gradient: bool, gather: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the four scalars and, if wanted, W times the gradient of the global loss for this rank's z, (2, n, D)."""
    # Half precision and TF32 are too inexact for the loss at small temperatures; they are for the encoder.
    with torch.autocast(z_a.device.type, enabled=False), _full_precision():
        n, process_group = len(z_a), _groups.get(group)
        world = distributed.world_size(process_group) if gather else 1
        sizes = distributed.gather_sizes(n, device=z_a.device, group=process_group) if world > 1 else [n]
        total, start = sum(sizes), sum(sizes[: distributed.rank(process_group) if world > 1 else 0])
        if total == 0:
            raise ValueError("z_a and z_b have no rows; NT-Xent needs at least one pair")
        double = total <= SMALL_BATCH and z_a.device.type in ("cpu", "cuda")  # other devices may lack float64
        v_2ND, inverse_2N1 = normalize(
            distributed.gather_rows(torch.stack([z_a, z_b]), sizes, group=process_group),
            temperature=temperature,
            double=double,
        )
        blocks = Blocks(v_2ND, start=start, n=n, temperature=temperature, store=gradient)
        rows = blocks.sums().finish(blocks.positives())
        lse_2N = distributed.gather_rows(rows.lse_2n, sizes, group=process_group)
        # The weight of a row, such that the mean over ranks is the mean over all 2N rows, whatever the local batches.
        share = world / (2 * total)
        kind = _result_type(z_a, z_b)
        loss, accuracy, entropy, entropy_all = ((x_2n.sum() * share).to(kind) for x_2n in rows.outputs())
        if not gradient:
            return loss, accuracy, entropy, entropy_all, loss.new_empty(0)
        g_2nD, own = blocks.gradient(rows, lse_2N), slice(start, start + n)
        scale_2n1 = inverse_2N1[:, own] * share
        through_normalization(g_2nD, v_2ND[:, own], scale_2n1, temperature=temperature)
        return loss, accuracy, entropy, entropy_all, g_2nD.to(kind)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 matrix products in full precision inside the block, without TF32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _result_type(z_a: Tensor, z_b: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (z_a.dtype, z_b.dtype) else torch.float32


def _shapes(
    z_a: Tensor, z_b: Tensor, temperature: float, gradient: bool, gather: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return tensors with the shapes and dtypes of ``_compute``'s, for tracing."""
    loss, accuracy, entropy, entropy_all = (z_a.new_empty((), dtype=_result_type(z_a, z_b)) for _ in range(4))
    return loss, accuracy, entropy, entropy_all, loss.new_empty((2, *z_a.shape) if gradient else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.types = inputs[0].dtype, inputs[1].dtype
    ctx.save_for_backward(output[-1])


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Scale the gradient that the forward pass computed."""
    if others[-1] is not None:  # a second derivative
        raise RuntimeError(
            "NT-Xent cannot be differentiated twice: its second derivative is not implemented. "
            "Compute gradient penalties with another loss"
        )
    if grad is None:
        return (None,) * 6
    (g_2nD,) = ctx.saved_tensors
    g_a, g_b = ((g_nD * grad).to(kind) for g_nD, kind in zip(g_2nD, ctx.types, strict=True))
    return g_a, g_b, None, None, None, None


# One opaque operator: torch.compile neither unrolls the loop over blocks nor traces the collectives. Registered by its
# schema, because `torch.library.custom_op` imports the compiler at the first call (a second, and 170 MB). The kernel
# for "Meta" gives the compiler the shapes.
_library = torch.library.Library("simclr_lightning", "FRAGMENT")
_library.define(
    "nt_xent(Tensor z_a, Tensor z_b, float temperature, bool gradient, bool gather, str group)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("nt_xent", _compute, "CompositeExplicitAutograd")
_library.impl("nt_xent", _shapes, "Meta")
torch.library.register_autograd("simclr_lightning::nt_xent", _backward, setup_context=_save, lib=_library)
_operator = torch.ops.simclr_lightning.nt_xent.default
