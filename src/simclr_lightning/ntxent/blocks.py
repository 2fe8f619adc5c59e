"""Visit the similarity matrix one block at a time: first for the sums along its rows, then for the gradient.

Shapes as in ``operator``. One process alone has a symmetric matrix and visits only the blocks of its upper triangle;
each of them counts for its rows and for its columns. Of several processes, each visits all blocks of its local rows.
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

# Rows with a smaller norm have cosine 0 with every row and gradient 0.
SMALLEST_NORM = 1e-12
# From this temperature on, exp(cosine / temperature) lies in [e^-40, e^40], and float32 holds sums of millions of such
# numbers without subtracting a maximum. Below it, each row tracks a running maximum.
BOUNDED_TEMPERATURE = 0.025
# device -> {largest number of pairs: longest side of a block}. On a CPU, a block of 384 x 384 fits the L2 cache of a
# core. Larger blocks need fewer calls, but more wasted work in diagonal blocks, which are computed whole. Powers of two
# slow down products with a transposed block. A GPU is fastest with few large kernels.
BLOCK_SIDES = {"cpu": {1024: 384, sys.maxsize: 640}, "cuda": {sys.maxsize: 2048}}
# device -> bytes for the rows of a loss, their gradient, and stored blocks. Blocks that do not fit are computed again
# for the gradient. The limit is constant, so memory stays linear in N.
MEMORY = {"cpu": 16 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class Block:
    """Some rows of this rank with some columns of all ranks; both are a range within one view."""

    row: int
    """Position of its rows in the list of row parts."""
    column: int
    """Position of its columns in the list of column parts."""
    shape: tuple[int, int]
    kind: int
    """0 if rows and columns are of the same view, else 1."""
    diagonal: int
    """Offset of the diagonal whose entries to mask: self-pairs within a view, positives across views."""
    mirrored: bool
    """Whether the block also represents its transpose, below the diagonal of the matrix."""


def layout(rows: Sequence[Part], columns: Sequence[Part], *, start: int, symmetric: bool) -> Iterator[Block]:
    """Yield the blocks to visit: the upper triangle if ``symmetric``, else all.

    Args:
        rows: the parts of the rows.
        columns: the parts of the columns.
        start: position of this rank's first pair among all pairs.
        symmetric: whether rows and columns are the same.
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
    """Split both views of ``length`` pairs into equal ranges of about ``side`` rows at most.

    The length of a range is a multiple of 16, for vector units; only the last range may be shorter.

    >>> parts(40, 32)
    [(0, slice(0, 32, None)), (0, slice(32, 40, None)), (1, slice(0, 32, None)), (1, slice(32, 40, None))]
    """
    if length == 0:
        return []
    even = -(-length // -(-length // side))
    step = -(-even // 16) * 16
    return [(view, slice(i, min(i + step, length))) for view in (0, 1) for i in range(0, length, step)]


@final
class Blocks:
    """The blocks of one loss and their preallocated buffers.

    Args:
        v_2ND: the rows of all ranks from ``normalize``, so that v v^T is the logits.
        start: position of this rank's first pair among the N pairs.
        n: number of pairs of this rank.
        temperature: as in ``nt_xent``.
        store: whether to store blocks for ``gradient``.
        beta: above 0 also sums exp(beta s) and exp((1 + beta) s), for hard negatives.
    """

    def __init__(
        self, v_2ND: Tensor, *, start: int, n: int, temperature: float, store: bool, beta: float = 0.0
    ) -> None:
        device = "cpu" if v_2ND.device.type == "cpu" else "cuda"
        self.temperature, self.beta = temperature, beta
        self.running = temperature < BOUNDED_TEMPERATURE * (1 + beta)
        self.keeps_logits = self.running or beta > 0  # else a stored block holds exp2 of the logits
        self.v_2nD = v_2ND[:, start : start + n]
        side = next(side for pairs, side in BLOCK_SIDES[device].items() if v_2ND.shape[1] <= pairs)
        self.row_parts, self.column_parts = parts(n, side), parts(v_2ND.shape[1], side)
        # Slice once: slicing takes as long as the sums of a small block.
        self.rows = [self.v_2nD[part] for part in self.row_parts]
        self.columns = [v_2ND[part] for part in self.column_parts]
        self.blocks = list(layout(self.row_parts, self.column_parts, start=start, symmetric=n == v_2ND.shape[1]))
        left = MEMORY[device] - v_2ND.nbytes - self.v_2nD.nbytes
        self._allocate(left // v_2ND.element_size() if store else 0)

    def _allocate(self, budget: int) -> None:
        """Allocate the shared buffers, and one buffer for each of the first blocks, up to ``budget`` elements.

        All buffers are one allocation. The system would take back many small ones after each loss, and every page would
        fault again in the next loss.
        """
        sizes = [-(-math.prod(block.shape) // 16) * 16 for block in self.blocks]
        shared = [max(sizes, default=0)] * (3 if self.beta else 2)
        lengths = shared + [size for size, end in zip(sizes, accumulate(sizes), strict=True) if end <= budget]
        memory = self.v_2nD.new_empty(sum(lengths))
        self.scratch, self.spare, *buffers = torch.split(memory, lengths)
        self.hard = buffers.pop(0) if self.beta else None
        self.stored = {block: _view(x, block) for block, x in zip(self.blocks, buffers, strict=False)}

    def sums(self) -> RowSums:
        """Visit every block once and return the sums over the negatives of each row."""
        bound = 1 / (self.temperature * LN2)
        n = self.v_2nD.shape[1]
        sums = RowSums(self.row_parts, n, like=self.v_2nD, bound=bound, running=self.running, beta=self.beta)
        for block in self.blocks:
            buffer_RC, spare_RC = self._buffer(block), _view(self.spare, block)
            s_RC, work_RC = (buffer_RC, spare_RC) if self.keeps_logits else (spare_RC, buffer_RC)
            hard_RC = None if self.hard is None else _view(self.hard, block)
            self._logits(block, out=s_RC)
            column = block.column if block.mirrored else None
            sums.add(s_RC, work_RC, hard_RC, kind=block.kind, row=block.row, column=column)
        return sums

    def positives(self) -> Tensor:
        """Return the logits of the positives, (n,), which are the same for both views."""
        return (self.v_2nD[0] * self.v_2nD[1]).sum(1)

    def gradient(self, rows: Rows, lse_GN: Tensor) -> Tensor:
        """Return the gradient of the rows' losses with respect to v, times temperature and stretch, (2, n, D).

        For NT-Xent it is sum_j (p_ij + p_ji) v_j - 2 v_pos(i) for every row i; see docs/ntxent.md.

        Args:
            rows: the values of this rank's rows, from ``RowSums.finish`` and ``objectives``.
            lse_GN: ``Rows.lse_gn`` of all ranks.
        """
        g_2nD = torch.zeros_like(self.v_2nD)
        g_rows = [g_2nD[part] for part in self.row_parts]
        # At temperatures with a running maximum, exp(s_ij) alone or 1 / sum_i alone would overflow or underflow.
        weights_Gn, weights_GN = (rows.lse_gn, lse_GN) if self.running else ((-rows.lse_gn).exp2_(), (-lse_GN).exp2_())
        groups = list(zip(weights_Gn.split(2), weights_GN.split(2), strict=True))
        row_weights = [[own_2n[part].unsqueeze(1) for own_2n, _ in groups] for part in self.row_parts]
        column_weights = [[all_2N[part] for _, all_2N in groups] for part in self.column_parts]
        for block in self.blocks:
            p_RC = self._coefficients(block, row_weights[block.row], column_weights[block.column])
            g_rows[block.row].addmm_(p_RC, self.columns[block.column])
            if block.mirrored:
                g_rows[block.column].addmm_(p_RC.t(), self.rows[block.row])
        # The blocks mask the positives. Add their p_ij + p_ji - 2 as -(1 - p_ij) - (1 - p_ji), which is more exact.
        positive_n1 = rows.pull_2n.sum(0).unsqueeze(1)
        g_2nD[0].addcmul_(positive_n1, self.v_2nD[1], value=-1)
        g_2nD[1].addcmul_(positive_n1, self.v_2nD[0], value=-1)
        return g_2nD

    def _buffer(self, block: Block) -> Tensor:
        """Return the buffer that stores a block for the gradient, or the shared buffer if the block is not stored."""
        stored = self.stored.get(block)
        return _view(self.scratch, block) if stored is None else stored

    def _logits(self, block: Block, *, out: Tensor) -> Tensor:
        """Compute the logits of a block into ``out``, with self-pairs and positives masked."""
        torch.mm(self.rows[block.row], self.columns[block.column].t(), out=out)
        if -block.shape[0] < block.diagonal < block.shape[1]:
            # A finite mask: its product with its exp2 is 0, where -inf would give NaN.
            out.diagonal(block.diagonal).fill_(torch.finfo(out.dtype).min)
        return out

    def _coefficients(self, block: Block, rows_GR1: list[Tensor], columns_GC: list[Tensor]) -> Tensor:
        """Return the derivative of the rows' losses by the logits of a block, plus its mirror image, (R, C).

        For NT-Xent it is p_ij + p_ji = exp(s_ij) (1 / sum_i + 1 / sum_j).
        """
        buffer_RC, spare_RC = self._buffer(block), _view(self.spare, block)
        if block not in self.stored:
            self._logits(block, out=buffer_RC)
        if self.hard is not None:
            return self._hard_coefficients(buffer_RC, spare_RC, _view(self.hard, block), rows_GR1, columns_GC)
        (row_R1,), (column_C,) = rows_GR1, columns_GC
        if self.running:  # exp(s_ij - lse_i) + exp(s_ij - lse_j)
            return torch.sub(buffer_RC, row_R1, out=spare_RC).exp2_().add_(buffer_RC.sub_(column_C).exp2_())
        if block not in self.stored:
            buffer_RC.exp2_()
        return torch.add(row_R1, column_C, out=spare_RC).mul_(buffer_RC)

    def _hard_coefficients(
        self, s_RC: Tensor, spare_RC: Tensor, hard_RC: Tensor, rows_GR1: list[Tensor], columns_GC: list[Tensor]
    ) -> Tensor:
        """Return exp(beta s) (exp(s) (a_i + a_j) - b_i - b_j) of a block; the weights a and b are those of ``lse_gn``.

        With a running maximum the weights are minus their logarithms.
        """
        weights = list(zip(rows_GR1, columns_GC, strict=True))
        if self.running:
            spare_RC.zero_()
            for (row_R1, column_C), power, sign in zip(weights, (1 + self.beta, self.beta), (1, -1), strict=True):
                for weight in (row_R1, column_C):
                    torch.mul(s_RC, power, out=hard_RC).sub_(weight).exp2_()
                    spare_RC.add_(hard_RC, alpha=sign)
            return spare_RC
        (a_R1, a_C), (b_R1, b_C) = weights
        torch.mul(s_RC, self.beta, out=hard_RC).exp2_()
        torch.add(a_R1, a_C, out=spare_RC).mul_(s_RC.exp2_()).sub_(b_R1).sub_(b_C)
        return spare_RC.mul_(hard_RC)


def _view(buffer: Tensor, block: Block) -> Tensor:
    """Return the start of a flat buffer in the shape of a block."""
    rows, columns = block.shape
    return buffer[: rows * columns].view(rows, columns)


def normalize(z_2ND: Tensor, *, temperature: float, double: bool) -> tuple[Tensor, Tensor]:
    """Return v = z / |z| * sqrt(1 / (temperature ln 2)), so that v v^T is the logits in base 2, and 1 / |z| (2, N, 1).

    Both are 0 for a row with a norm below 1e-12. Rows are first divided by their largest entry if it is above 1, so no
    square overflows. Both are float64 if z is float64 or ``double`` is true, else float32.
    """
    z_2ND = z_2ND.to(torch.float64 if double or z_2ND.dtype == torch.float64 else torch.float32)
    peak_2N1 = torch.maximum(z_2ND.amax(2, keepdim=True), -z_2ND.amin(2, keepdim=True)).clamp_(min=1)
    v_2ND = z_2ND / peak_2N1
    norm_2N1 = (v_2ND * v_2ND).sum(2, keepdim=True).sqrt_()
    zero_2N1 = norm_2N1 * peak_2N1 < SMALLEST_NORM
    inverse_2N1 = norm_2N1.reciprocal().masked_fill_(zero_2N1, 0)
    v_2ND *= inverse_2N1 * _stretch(temperature)
    return v_2ND, inverse_2N1 / peak_2N1


def through_normalization(g_2nD: Tensor, v_2nD: Tensor, inverse_2n1: Tensor, *, temperature: float) -> Tensor:
    """Turn the result of ``Blocks.gradient`` into the gradient with respect to z, in place.

    With u = z / |z|, d loss / d z = (g - (g . u) u) / |z|, where g = d loss / d u = gradient / (temperature * stretch)
    and the loss is the sum over rows.
    """
    stretch = _stretch(temperature)
    for g_nD, v_nD in zip(g_2nD, v_2nD, strict=True):
        along_n1 = (g_nD * v_nD).sum(1, keepdim=True)
        g_nD.addcmul_(along_n1, v_nD, value=-1 / stretch**2)
    return g_2nD.mul_(inverse_2n1 / (temperature * stretch))


def _stretch(temperature: float) -> float:
    """Return the factor on unit vectors that makes their products logits in base 2."""
    return math.sqrt(1 / (temperature * LN2))
