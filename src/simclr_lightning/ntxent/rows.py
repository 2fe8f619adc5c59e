"""Sum over the negatives of each row of the similarity matrix: exp(logit), logit * exp(logit), and the largest logit.

Shapes as in ``loss``. A leading K = 2 separates the negatives in the row's view (0) from those in the other view (1);
the contrastive accuracy and entropy use only the candidates in the other view. Logits are in base 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

LN2 = math.log(2.0)

Part = tuple[int, slice]
"""A view (0 or 1) and a range of its rows."""


@final
class RowSums:
    """The sums of exp2(logit - top) and of logit * exp2(logit - top) over the negatives of each row.

    Args:
        parts: the ranges of rows that blocks belong to; ``add`` takes positions in this list.
        n: the number of rows of this rank in each view.
        like: a tensor with the dtype and the device of the sums.
        bound: the largest possible logit, 1 / (temperature ln 2).
        running: whether ``top`` is the running maximum of each row. If not, ``top`` is 0, and the largest logit is
            tracked only in the other view.
    """

    def __init__(self, parts: Sequence[Part], n: int, *, like: Tensor, bound: float, running: bool) -> None:
        self.running = running
        # Start from the smallest possible logit, since masked entries must not become the maximum.
        self.largest_K2n = like.new_full((2, 2, n), -bound)
        self.sum_K2n = like.new_zeros((2, 2, n))
        self.energy_K2n = like.new_zeros((2, 2, n))
        # Slice once: slicing takes as long as the sums of a small block.
        self._parts = [
            [(self.largest_K2n[kind][part], self.sum_K2n[kind][part], self.energy_K2n[kind][part]) for part in parts]
            for kind in (0, 1)
        ]

    def add(self, s_RC: Tensor, work_RC: Tensor, *, kind: int, row: int, column: int | None) -> None:
        """Add a block of logits to the sums of the parts ``row`` and, unless it is None, ``column``.

        ``kind`` is 0 where rows and columns are of one view, else 1. With a running maximum, ``s_RC`` is unchanged and
        ``work_RC`` is scratch memory. Without one, ``work_RC`` becomes exp2(s_RC), and ``s_RC`` is overwritten.
        """
        axes = [(1, *self._parts[kind][row])]
        if column is not None:
            axes.append((0, *self._parts[kind][column]))
        if self.running:
            for axis in axes:
                _add_running(s_RC, work_RC, *axis)
            return
        if kind == 1:
            for dim, largest, _, _ in axes:
                torch.maximum(largest, s_RC.amax(dim), out=largest)
        torch.exp2(s_RC, out=work_RC)
        s_RC.mul_(work_RC)
        for dim, _, total, energy in axes:
            total.add_(work_RC.sum(dim))
            energy.add_(s_RC.sum(dim))

    def finish(self, positive_n: Tensor) -> "Rows":
        """Return the loss and the metrics of each row, from its sums and the logit (n,) of its positive."""
        smallest = torch.finfo(positive_n.dtype).min  # replaces log 0 where there are no negatives
        log_K2n = self.sum_K2n.log2()
        if self.running:
            log_K2n += self.largest_K2n
        log_K2n.clamp_(min=smallest).mul_(LN2)
        mean_K2n = torch.where(self.sum_K2n > 0, self.energy_K2n / self.sum_K2n * LN2, 0.0)
        s_n = positive_n * LN2
        log_2n = torch.logaddexp(log_K2n[0], log_K2n[1])
        mean_2n = ((log_K2n - log_2n).exp() * mean_K2n).sum(0)
        loss_2n, negative_2n, entropy_all_2n = _softmax_with_positive(log_2n, mean_2n, s_n)
        _, _, entropy_2n = _softmax_with_positive(log_K2n[1], mean_K2n[1], s_n)
        return Rows(
            loss_2n=loss_2n,
            accuracy_2n=(positive_n > self.largest_K2n[1]).to(loss_2n.dtype),
            entropy_2n=entropy_2n,
            entropy_all_2n=entropy_all_2n,
            negative_2n=negative_2n,
            lse_2n=loss_2n / LN2 + positive_n,
        )


@dataclass(frozen=True)
class Rows:
    """The values of each row: those of ``NTXentOutput``, 1 - p of the positive, and the log-sum-exp."""

    loss_2n: Tensor
    accuracy_2n: Tensor
    entropy_2n: Tensor
    entropy_all_2n: Tensor
    negative_2n: Tensor
    lse_2n: Tensor
    """The log-sum-exp over the 2N - 1 candidates of the row, in base 2."""

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the values of each row, each (2, n), in the order of ``NTXentOutput``."""
        return self.loss_2n, self.accuracy_2n, self.entropy_2n, self.entropy_all_2n


def _softmax_with_positive(log_2n: Tensor, mean_2n: Tensor, s_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, probability of the negatives and entropy, from the negatives' log-sum-exp and mean logit, in nats.

    A loss near 0 stays precise, since all values are relative to the positive. With x the log-sum-exp of the negatives
    minus the logit of the positive, the loss is log(1 + e^x), and 1 - p of the positive is e^x / (1 + e^x) =
    -expm1(-loss). Subtracting p from 1 would lose these digits.
    """
    x_2n = log_2n - s_n
    loss_2n = torch.logaddexp(x_2n, torch.zeros_like(x_2n))
    negative_2n = -torch.expm1(-loss_2n)
    return loss_2n, negative_2n, loss_2n - negative_2n * (mean_2n - s_n)


def _add_running(s_RC: Tensor, work_RC: Tensor, dim: int, largest: Tensor, total: Tensor, energy: Tensor) -> None:
    """Update the running maximum of some rows, rescale their sums to it, and add the sums of a block."""
    new = torch.maximum(largest, s_RC.amax(dim))
    shrink = torch.exp2(largest - new)
    torch.sub(s_RC, new.unsqueeze(dim), out=work_RC).exp2_()
    total.mul_(shrink).add_(work_RC.sum(dim))
    work_RC.mul_(s_RC)
    energy.mul_(shrink).add_(work_RC.sum(dim))
    largest.copy_(new)
