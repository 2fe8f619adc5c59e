"""The similarity matrix, one block at a time: the sums along its rows, then the gradient.

Shapes as in ``loss``. On one process the matrix is symmetric and only its upper triangle of blocks is
visited, each block serving its rows and its columns; with several processes each visits the blocks of its
own rows.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from simclr_lightning.ntxent.rows import LN2, Part, Rows, RowSums

# Norms below this count as zero: cosine 0 with everything, gradient 0.
SMALLEST_NORM = 1e-12
# Cosines lie in [-1, 1], so exp(cosine / temperature) stays within e^-40 and e^40 down to here, and sums of
# millions of them stay in float32's range: no maximum need be subtracted. Below, a running maximum is kept.
BOUNDED_TEMPERATURE = 0.025
# The longest side of a block, for at most so many pairs. On a CPU blocks of 384 x 384 stay in a core's
# second-level cache; larger ones cost less bookkeeping, but the diagonal blocks, computed whole, cost more.
# Powers of two slow down the products with a transposed block. A GPU wants few large kernels.
BLOCK_SIDES = {"cpu": {1024: 384, sys.maxsize: 640}, "cuda": {sys.maxsize: 2048}}
# The bytes that a loss may take for its rows, their gradient and the blocks kept for the gradient, which get
# what the first two leave; the other blocks are computed again. A constant, so memory is linear in N.
MEMORY = {"cpu": 16 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class Block:
    """Rows of this rank against columns of all ranks, each a range within one view."""

    row: int
    """The place of its rows among the parts of the rows."""
    column: int
    """The place of its columns among the parts of the columns."""
    shape: tuple[int, int]
    kind: int
    """0 where rows and columns are of one view, 1 where they are of two."""
    diagonal: int
    """The offset of the diagonal where a pair meets itself: self-pairs, or the positives across views."""
    mirrored: bool
    """Whether the block also stands for its transpose, below the diagonal."""


def layout(rows: Sequence[Part], columns: Sequence[Part], *, start: int, symmetric: bool) -> Iterator[Block]:
    """The blocks to visit: the upper triangle where rows and columns are the same, else all.

    ``start`` is where this rank's pairs begin among all pairs.
    """
    for p, (row_view, row) in enumerate(rows):
        for q, (column_view, column) in enumerate(columns):
            if not symmetric or q >= p:
                yield Block(
                    row=p,
                    column=q,
                    shape=(row.stop - row.start, column.stop - column.start),
                    kind=int(row_view != column_view),
                    diagonal=start + row.start - column.start,
                    mirrored=symmetric and q > p,
                )


def parts(length: int, side: int) -> list[Part]:
    """Even ranges within each view, at most about ``side`` long: a multiple of 16, for the vector units."""
    if length == 0:
        return []
    even = -(-length // -(-length // side))
    step = -(-even // 16) * 16
    return [(view, slice(i, min(i + step, length))) for view in (0, 1) for i in range(0, length, step)]


@final
class Blocks:
    """The blocks of one loss, with their preallocated buffers.

    Args:
        v_2ND: normalised rows of all ranks, times sqrt(1 / (temperature ln 2)), so that v v^T is logits.
        start: where this rank's pairs begin among the N.
        n: how many they are.
        temperature: as in ``nt_xent``.
        keep: whether a gradient follows, for which blocks are worth keeping.
    """

    def __init__(self, v_2ND: Tensor, *, start: int, n: int, temperature: float, keep: bool) -> None:
        device = "cpu" if v_2ND.device.type == "cpu" else "cuda"
        self.temperature, self.running = temperature, temperature < BOUNDED_TEMPERATURE
        self.v_2nD = v_2ND[:, start : start + n]
        side = next(side for pairs, side in BLOCK_SIDES[device].items() if v_2ND.shape[1] <= pairs)
        self.row_parts, self.column_parts = parts(n, side), parts(v_2ND.shape[1], side)
        # Sliced once: a slice costs as much as the sums of a small block.
        self.rows = [self.v_2nD[part] for part in self.row_parts]
        self.columns = [v_2ND[part] for part in self.column_parts]
        self.blocks = list(layout(self.row_parts, self.column_parts, start=start, symmetric=n == v_2ND.shape[1]))
        left = MEMORY[device] - v_2ND.nbytes - self.v_2nD.nbytes
        self._allocate(left // v_2ND.element_size() if keep else 0)

    def _allocate(self, budget: int) -> None:
        """Make the two shared buffers, and one for each of the first blocks, ``budget`` elements at most.

        One allocation for all: many would go back to the system after each loss, and every page of them
        would cost a fault in the next.
        """
        sizes = [-(-math.prod(block.shape) // 16) * 16 for block in self.blocks]
        shared = [max(sizes, default=0)] * 2
        lengths = shared + [size for size, end in zip(sizes, accumulate(sizes), strict=True) if end <= budget]
        memory = self.v_2nD.new_empty(sum(lengths))
        self.scratch, self.spare, *own = torch.split(memory, lengths)
        self.kept = {block: _view(x, block) for block, x in zip(self.blocks, own, strict=False)}

    def sums(self) -> RowSums:
        """Visit every block once: the sums over each row's negatives."""
        bound = 1 / (self.temperature * LN2)
        n = self.v_2nD.shape[1]
        sums = RowSums(self.row_parts, n, like=self.v_2nD, bound=bound, running=self.running)
        for block in self.blocks:
            held_RC, spare_RC = self._held(block), _view(self.spare, block)
            s_RC, work_RC = (held_RC, spare_RC) if self.running else (spare_RC, held_RC)
            self._logits(block, out=s_RC)
            column = block.column if block.mirrored else None
            sums.add(s_RC, work_RC, kind=block.kind, row=block.row, column=column)
        return sums

    def positives(self) -> Tensor:
        """The logits (n,) of the positives; both views share them."""
        return (self.v_2nD[0] * self.v_2nD[1]).sum(1)

    def gradient(self, rows: Rows, lse_2N: Tensor) -> Tensor:
        """Per row i, sum_j (p_ij + p_ji) v_j - 2 v_pos(i), as (2, n, D): see docs/ntxent.md.

        Args:
            rows: what ``sums`` came to.
            lse_2N: the log-sum-exps of the rows of all ranks, in base 2.
        """
        g_2nD = torch.zeros_like(self.v_2nD)
        g_rows = [g_2nD[part] for part in self.row_parts]
        # With a running maximum exp(s_ij) alone, or 1 / sum_i alone, would leave the range of the numbers.
        weights_2n, weights_2N = (rows.lse_2n, lse_2N) if self.running else ((-rows.lse_2n).exp2_(), (-lse_2N).exp2_())
        row_weights = [weights_2n[part].unsqueeze(1) for part in self.row_parts]
        column_weights = [weights_2N[part] for part in self.column_parts]
        coefficients = self._coefficients_running if self.running else self._coefficients
        for block in self.blocks:
            p_RC = coefficients(block, row_weights[block.row], column_weights[block.column])
            g_rows[block.row].addmm_(p_RC, self.columns[block.column])
            if block.mirrored:
                g_rows[block.column].addmm_(p_RC.t(), self.rows[block.row])
        # p_ij + p_ji - 2 of the positives, which the blocks mask: both come as 1 - p, not rounded.
        positive_n1 = rows.negative_2n.sum(0).unsqueeze(1)
        g_2nD[0].addcmul_(positive_n1, self.v_2nD[1], value=-1)
        g_2nD[1].addcmul_(positive_n1, self.v_2nD[0], value=-1)
        return g_2nD

    def _held(self, block: Block) -> Tensor:
        """Where a block stays for the gradient if it is kept, else the buffer that all others share."""
        kept = self.kept.get(block)
        return _view(self.scratch, block) if kept is None else kept

    def _logits(self, block: Block, *, out: Tensor) -> Tensor:
        """A block's logits, with self-pairs and positives masked."""
        torch.mm(self.rows[block.row], self.columns[block.column].t(), out=out)
        if -block.shape[0] < block.diagonal < block.shape[1]:
            # Finite, so that its product with its own exp2 is 0 and not NaN.
            out.diagonal(block.diagonal).fill_(torch.finfo(out.dtype).min)
        return out

    def _coefficients(self, block: Block, weight_R1: Tensor, weight_C: Tensor) -> Tensor:
        """p_ij + p_ji = exp(s_ij) (1 / sum_i + 1 / sum_j)."""
        exp_RC, spare_RC = self._held(block), _view(self.spare, block)
        if block not in self.kept:
            self._logits(block, out=exp_RC).exp2_()
        return torch.add(weight_R1, weight_C, out=spare_RC).mul_(exp_RC)

    def _coefficients_running(self, block: Block, lse_R1: Tensor, lse_C: Tensor) -> Tensor:
        """p_ij + p_ji = exp(s_ij - lse_i) + exp(s_ij - lse_j)."""
        s_RC, spare_RC = self._held(block), _view(self.spare, block)
        if block not in self.kept:
            self._logits(block, out=s_RC)
        return torch.sub(s_RC, lse_R1, out=spare_RC).exp2_().add_(s_RC.sub_(lse_C).exp2_())


def _view(buffer: Tensor, block: Block) -> Tensor:
    """The start of a flat buffer, in a block's shape."""
    rows, columns = block.shape
    return buffer[: rows * columns].view(rows, columns)


def normalise(z_2ND: Tensor, *, temperature: float, double: bool) -> tuple[Tensor, Tensor]:
    """z -> (v, inverse norms (2, N, 1)): v = z / |z| * sqrt(1 / (temperature ln 2)), so that v v^T is logits.

    For a row with a norm under 1e-12 both are 0. Rows are divided by their largest entry first where that is
    above 1, so that no square overflows. Both are float64 if z is, or where ``double`` says so, else float32.
    """
    z_2ND = z_2ND.to(torch.float64 if double or z_2ND.dtype == torch.float64 else torch.float32)
    peak_2N1 = torch.maximum(z_2ND.amax(2, keepdim=True), -z_2ND.amin(2, keepdim=True)).clamp_(min=1)
    v_2ND = z_2ND / peak_2N1
    norm_2N1 = (v_2ND * v_2ND).sum(2, keepdim=True).sqrt_()
    zero_2N1 = norm_2N1 * peak_2N1 < SMALLEST_NORM
    inverse_2N1 = norm_2N1.reciprocal().masked_fill_(zero_2N1, 0)
    v_2ND *= inverse_2N1 * _stretch(temperature)
    return v_2ND, inverse_2N1 / peak_2N1


def through_normalisation(g_2nD: Tensor, v_2nD: Tensor, inverse_2n1: Tensor, *, temperature: float) -> Tensor:
    """Turn ``Blocks.gradient`` into the gradient of z for a loss that sums over rows; ``g_2nD`` is
    overwritten.

    With u = z / |z|: d loss / d z = (g - (g . u) u) / |z|, g = d loss / d u = gradient / (temperature *
    stretch).
    """
    stretch = _stretch(temperature)
    for g_nD, v_nD in zip(g_2nD, v_2nD, strict=True):
        along_n1 = (g_nD * v_nD).sum(1, keepdim=True)
        g_nD.addcmul_(along_n1, v_nD, value=-1 / stretch**2)
    return g_2nD.mul_(inverse_2n1 / (temperature * stretch))


def _stretch(temperature: float) -> float:
    """The factor on unit vectors that makes their products logits in base 2."""
    return math.sqrt(1 / (temperature * LN2))
