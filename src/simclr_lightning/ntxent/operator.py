"""Compute NT-Xent and its relatives as one operator of torch: values and gradient in the forward pass.

Shapes: n pairs on this rank, N pairs on all ranks, D the width of z. A leading 2 stands for the two views, so the 2N
rows of the paper are v_2ND. A block holds the logits of some rows (R) with some columns (C). Internal logits are in
base 2, cosine / (temperature * ln 2), because ``exp2`` is faster than ``exp``; returned values are in nats. A leading G
is 2, or 4 where each negative has two weights.

docs/ntxent.md derives the algorithm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simclr_lightning import distributed
from simclr_lightning.ntxent.blocks import Blocks, normalize, through_normalization
from simclr_lightning.ntxent.objectives import Classes, Objective

# Up to this many pairs, compute in float64. The cost is negligible, and in so small a batch one pair can dominate the
# gradient: a small temperature would then amplify the rounding error of its cosine.
SMALL_BATCH = 64


def compute(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    objective: Objective,
    *,
    labels: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
) -> tuple[Tensor, ...]:
    """Return loss, accuracy, entropy and entropy_all of n checked pairs, as ``NTXentOutput``; the loss has a gradient.

    Args:
        z_a: (n, D) projections of the first view.
        z_b: (n, D) projections of the second view.
        temperature: divisor of the cosines.
        objective: the loss and its numbers.
        labels: (n,) int64 for sup_con, else None.
        group: the process group; None for all processes.
        gather: False compares only the rows of this rank.
    """
    gradient = torch.is_grad_enabled() and (z_a.requires_grad or z_b.requires_grad)
    one = objective
    numbers = float(temperature), one.sigma, one.tau_plus, one.beta
    loss, *figures, _ = _operator(z_a, z_b, labels, one.name, *numbers, gradient, gather, _name(group))
    return loss, *(figure.detach() for figure in figures)


# A custom operator takes plain values only, so a process group is passed by its name.
_groups: dict[str, dist.ProcessGroup] = {}


def _name(group: dist.ProcessGroup | None) -> str:
    if group is None:
        return ""
    distributed.rank(group)  # raises ValueError in a process that is not in the group
    _groups[group.group_name] = group
    return group.group_name


def _compute(
    z_a: Tensor,
    z_b: Tensor,
    labels: Tensor | None,
    name: str,
    temperature: float,
    sigma: float,
    tau_plus: float,
    beta: float,
    gradient: bool,
    gather: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the four scalars and, if wanted, W times the gradient of the global loss for this rank's z, (2, n, D)."""
    # Half precision and TF32 are too inexact for the loss at small temperatures; they are for the encoder.
    with torch.autocast(z_a.device.type, enabled=False), _full_precision():
        n, process_group = len(z_a), _groups.get(group)
        world = distributed.world_size(process_group) if gather else 1
        sizes = distributed.gather_sizes(n, device=z_a.device, group=process_group) if world > 1 else [n]
        total, start = sum(sizes), sum(sizes[: distributed.rank(process_group) if world > 1 else 0])
        if total == 0:
            raise ValueError("z_a and z_b have no rows; the loss needs at least one pair")
        if total == 1 and name in ("dcl", "debiased"):
            raise ValueError(f"{name} needs at least two pairs, since one pair has no negatives")
        double = total <= SMALL_BATCH and z_a.device.type in ("cpu", "cuda")  # other devices may lack float64
        v_2ND, inverse_2N1 = normalize(
            distributed.gather_rows(torch.stack([z_a, z_b]), sizes, group=process_group),
            temperature=temperature,
            double=double,
        )
        own = slice(start, start + n)
        objective = Objective(name, sigma, tau_plus, beta)
        blocks = Blocks(v_2ND, start=start, n=n, temperature=temperature, store=gradient, beta=beta)
        positive_n = blocks.positives()
        rows = objective.rows(blocks.sums(), positive_n, v_2ND, temperature)
        classes = None if labels is None else _classes(labels, v_2ND, own, sizes, process_group)
        if classes is not None:
            of_rows = classes.of_rows()
            rows = classes.apply(rows, positive_n, *of_rows)
        lse_GN = distributed.gather_rows(rows.lse_gn, sizes, group=process_group)
        # The weight of a row, such that the mean over ranks is the mean over all 2N rows, whatever the local batches.
        share = world / (2 * total)
        kind = _result_type(z_a, z_b)
        loss, accuracy, entropy, entropy_all = ((x_2n.sum() * share).to(kind) for x_2n in rows.outputs())
        if not gradient:
            return loss, accuracy, entropy, entropy_all, loss.new_empty(0)
        g_2nD = blocks.gradient(rows, lse_GN)
        if classes is not None:
            classes.add_gradient(g_2nD, *of_rows)
        scale_2n1 = inverse_2N1[:, own] * share
        through_normalization(g_2nD, v_2ND[:, own], scale_2n1, temperature=temperature)
        return loss, accuracy, entropy, entropy_all, g_2nD.to(kind)


def _classes(labels: Tensor, v_2ND: Tensor, own: slice, sizes: list[int], group: dist.ProcessGroup | None) -> Classes:
    labels_1N = distributed.gather_rows(labels.long()[None], sizes, group=group)
    return Classes(labels_1N[0], v_2ND, own)


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
    z_a: Tensor,
    z_b: Tensor,
    labels: Tensor | None,
    name: str,
    temperature: float,
    sigma: float,
    tau_plus: float,
    beta: float,
    gradient: bool,
    gather: bool,
    group: str,
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
            "this loss cannot be differentiated twice: its second derivative is not implemented. "
            "Compute gradient penalties with another loss"
        )
    if grad is None:
        return (None,) * 11
    (g_2nD,) = ctx.saved_tensors
    g_a, g_b = ((g_nD * grad).to(kind) for g_nD, kind in zip(g_2nD, ctx.types, strict=True))
    return g_a, g_b, *(None,) * 9


# One opaque operator: torch.compile neither unrolls the loop over blocks nor traces the collectives. Registered by its
# schema, because `torch.library.custom_op` imports the compiler at the first call (a second, and 170 MB). The kernel
# for "Meta" gives the compiler the shapes.
_library = torch.library.Library("simclr_lightning", "FRAGMENT")
_library.define(
    "nt_xent(Tensor z_a, Tensor z_b, Tensor? labels, str name, float temperature, float sigma, float tau_plus,"
    " float beta, bool gradient, bool gather, str group) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("nt_xent", _compute, "CompositeExplicitAutograd")
_library.impl("nt_xent", _shapes, "Meta")
torch.library.register_autograd("simclr_lightning::nt_xent", _backward, setup_context=_save, lib=_library)
_operator = torch.ops.simclr_lightning.nt_xent.default
