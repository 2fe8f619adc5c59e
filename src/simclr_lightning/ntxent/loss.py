"""NT-Xent, the contrastive loss of SimCLR, without ever building its matrix.

Shapes: n pairs on this rank, N pairs on all ranks, D the width of z, and a leading 2 for the two views, so
that the 2N rows of the paper are v_2ND. A block holds the logits of some rows (R) with some columns (C). All
logits inside are in base 2, cosine / (temperature * ln 2), because ``exp2`` is the faster exponential; what
leaves is in nats.

docs/ntxent.md derives what is computed here; equation 1 and Algorithm 1 are those of the paper, section 2.1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from simclr_lightning import distributed
from simclr_lightning.ntxent.blocks import Blocks, normalise, through_normalisation

# Up to this many pairs float64 costs nothing, and one pair can carry the whole gradient: with it, the
# rounding of its cosine, divided by the temperature.
SMALL_BATCH = 64


class NTXentOutput(NamedTuple):
    """What ``nt_xent`` returns: four scalars, the last three detached."""

    loss: Tensor
    """The mean over the 2N rows, in nats."""
    accuracy: Tensor
    """The share of rows whose positive is the single most similar of the N candidates in the other view; in
    [0, 1]."""
    entropy: Tensor
    """The entropy of the softmax over these N candidates, mean over the rows, in nats; at most ln N."""
    entropy_all: Tensor
    """The same over all 2N - 1 candidates; its exponential is the effective number of candidates."""


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
) -> NTXentOutput:
    """Normalised temperature-scaled cross entropy of pairs (z_a[i], z_b[i]): paper section 2.1, equation 1.

    In an initialised process group the candidates are the rows of all ranks, whose local batches may differ
    in size. The mean over ranks of each returned value is its value on the global batch, and the gradient is
    such that DDP's averaging over ranks gives the gradient of the global loss. Memory is linear in N. The
    gradient is made during the forward pass, so nothing is communicated, and next to nothing computed, in
    the backward pass.

    Args:
        z_a: (n, D) projections of the first view, any norm: rows are normalised here. A row with a norm
            under 1e-12 has cosine 0 with every row, and its gradient is exactly 0. float64 is computed in
            float64, everything else in float32, under autocast too.
        z_b: (n, D) projections of the second view, in the same order.
        temperature: the divisor of the cosines, above 0; the paper uses 0.05 to 1.
        group: the process group; all processes by default.
        gather: False keeps to the rows of this rank.

    Raises:
        ValueError: shapes, types or the temperature are not as above.
            Or this process is not in ``group``.
        RuntimeError: on differentiating twice.
    """
    _check(z_a, z_b, temperature)
    gradient = torch.is_grad_enabled() and (z_a.requires_grad or z_b.requires_grad)
    loss, *figures, _ = _operator(z_a, z_b, float(temperature), gradient, gather, _name(group))
    return NTXentOutput(loss, *(figure.detach() for figure in figures))


class NTXent(nn.Module):
    """``nt_xent`` with its temperature: a module without parameters, forward(z_a, z_b) -> NTXentOutput."""

    def __init__(self, temperature: float, gather: bool = True) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = float(temperature)
        self.gather = gather

    def forward(self, z_a: Tensor, z_b: Tensor) -> NTXentOutput:
        """(n, D) and (n, D) -> the loss with its figures; see ``nt_xent``."""
        return nt_xent(z_a, z_b, self.temperature, gather=self.gather)

    def extra_repr(self) -> str:
        """What print shows between the brackets."""
        return f"temperature={self.temperature}, gather={self.gather}"


def _check_temperature(temperature: float) -> None:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"the temperature of NT-Xent must be above 0 and finite, for example 0.1: it is {temperature}")


def _check(z_a: Tensor, z_b: Tensor, temperature: float) -> None:
    _check_temperature(temperature)
    if z_a.ndim != 2 or z_a.shape != z_b.shape:
        shapes = f"{tuple(z_a.shape)} and {tuple(z_b.shape)}"
        raise ValueError(f"z_a and z_b must both be (n, D), row i of one the pair of row i of the other: {shapes}")
    if not (z_a.is_floating_point() and z_b.is_floating_point()):
        raise ValueError(f"z_a and z_b must be floating-point numbers: they are {z_a.dtype} and {z_b.dtype}")


# An operator's arguments are plain values, so a process group goes by its name.
_groups: dict[str, dist.ProcessGroup] = {}


def _name(group: dist.ProcessGroup | None) -> str:
    if group is None:
        return ""
    distributed.rank(group)  # refuses a stranger
    _groups[group.group_name] = group
    return group.group_name


def _compute(
    z_a: Tensor, z_b: Tensor, temperature: float, gradient: bool, gather: bool, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The four scalars and, if asked for, W times the global loss's gradient on this rank's z (2, n, D)."""
    # Half precision and TF32 are for the encoder: here they would cost the loss its digits at small temperatures.
    with torch.autocast(z_a.device.type, enabled=False), _whole_products():
        n, process_group = len(z_a), _groups.get(group)
        world = distributed.world_size(process_group) if gather else 1
        sizes = distributed.gather_sizes(n, device=z_a.device, group=process_group) if world > 1 else [n]
        total, start = sum(sizes), sum(sizes[: distributed.rank(process_group) if world > 1 else 0])
        if total == 0:
            raise ValueError("NT-Xent of no images: z_a and z_b have no rows")
        double = total <= SMALL_BATCH and z_a.device.type in ("cpu", "cuda")  # others may not know float64
        v_2ND, inverse_2N1 = normalise(
            distributed.gather_rows(torch.stack([z_a, z_b]), sizes, group=process_group),
            temperature=temperature,
            double=double,
        )
        blocks = Blocks(v_2ND, start=start, n=n, temperature=temperature, keep=gradient)
        rows = blocks.sums().finish(blocks.positives())
        lse_2N = distributed.gather_rows(rows.lse_2n, sizes, group=process_group)
        # What a row counts in a mean over ranks: with unequal local batches, each counts by its size.
        share = world / (2 * total)
        kind = _result_type(z_a, z_b)
        loss, accuracy, entropy, entropy_all = ((x_2n.sum() * share).to(kind) for x_2n in rows.figures())
        if not gradient:
            return loss, accuracy, entropy, entropy_all, loss.new_empty(0)
        g_2nD, own = blocks.gradient(rows, lse_2N), slice(start, start + n)
        scale_2n1 = inverse_2N1[:, own] * share
        through_normalisation(g_2nD, v_2ND[:, own], scale_2n1, temperature=temperature)
        return loss, accuracy, entropy, entropy_all, g_2nD.to(kind)


@contextmanager
def _whole_products() -> Iterator[None]:
    """Products of float32 keep all their bits inside, whatever the run allows its network."""
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
    """What ``_compute`` returns, without its values: for tracing."""
    loss, accuracy, entropy, entropy_all = (z_a.new_empty((), dtype=_result_type(z_a, z_b)) for _ in range(4))
    return loss, accuracy, entropy, entropy_all, loss.new_empty((2, *z_a.shape) if gradient else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.types = inputs[0].dtype, inputs[1].dtype
    ctx.save_for_backward(output[-1])


def _backward(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Scale the gradient that was made in the forward pass."""
    if others[-1] is not None:  # a gradient of the gradient
        raise RuntimeError(
            "NT-Xent cannot be differentiated twice: its second derivative is not implemented. "
            "Take penalties on gradients from another loss."
        )
    if grad is None:
        return (None,) * 6
    (g_2nD,) = ctx.saved_tensors
    g_a, g_b = ((g_nD * grad).to(kind) for g_nD, kind in zip(g_2nD, ctx.types, strict=True))
    return g_a, g_b, None, None, None, None


# One opaque operator: a compiler neither unrolls the loop over blocks nor looks into the gathers.
_operator = torch.library.custom_op("simclr_lightning::nt_xent", _compute, mutates_args=())
_operator.register_fake(_shapes)
_operator.register_autograd(_backward, setup_context=_save)
