"""What each row of the similarity matrix needs of its negatives: a sum, a mean logit and a largest logit.

Shapes as in ``loss``; a leading K = 2 keeps the negatives of the row's own view (0) apart from those of the
other view (1), whose N candidates alone make the contrastive accuracy and entropy. Logits are in base 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

LN2 = math.log(2.0)

# The view of some rows, and their range within it.
Part = tuple[int, slice]


@final
class RowSums:
    """Sums of exp2(logit - top) and of logit * exp2(logit - top) over each row's negatives.

    Args:
        parts: the ranges of rows that blocks will be added to; ``add`` names them by their place here.
        n: the rows of this rank in each view.
        like: a tensor with the wanted type and device.
        bound: the largest logit there can be, 1 / (temperature ln 2).
        running: whether ``top`` is the running maximum of each row; otherwise it is 0, and the largest logit
            is tracked for the other view alone.
    """

    def __init__(self, parts: Sequence[Part], n: int, *, like: Tensor, bound: float, running: bool) -> None:
        self.running = running
        # A masked entry is no maximum, so start from the smallest logit there can be.
        self.largest_K2n = like.new_full((2, 2, n), -bound)
        self.sum_K2n = like.new_zeros((2, 2, n))
        self.energy_K2n = like.new_zeros((2, 2, n))
        # Sliced once: a slice costs as much as the sums of a small block.
        self._parts = [
            [(self.largest_K2n[kind][part], self.sum_K2n[kind][part], self.energy_K2n[kind][part]) for part in parts]
            for kind in (0, 1)
        ]

    def add(self, s_RC: Tensor, work_RC: Tensor, *, kind: int, row: int, column: int | None) -> None:
        """Add a block of logits, of the own view (kind 0) or the other (1), to parts ``row`` and ``column``.

        With a running maximum ``s_RC`` is left alone and ``work_RC`` overwritten; without one ``s_RC`` is
        destroyed and ``work_RC`` becomes its exp2. ``column`` is None for a block that serves its rows alone.
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
        """The figures of each row, from its sums and the logit (n,) of its positive."""
        smallest = torch.finfo(positive_n.dtype).min  # stands for log 0 where there are no negatives
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
    """Per row: the figures of ``NTXentOutput``, 1 - p of the positive, and the log-sum-exp."""

    loss_2n: Tensor
    accuracy_2n: Tensor
    entropy_2n: Tensor
    entropy_all_2n: Tensor
    negative_2n: Tensor
    lse_2n: Tensor
    """Over the row's 2N - 1 candidates, in base 2."""

    def figures(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the order of ``NTXentOutput``."""
        return self.loss_2n, self.accuracy_2n, self.entropy_2n, self.entropy_all_2n


def _softmax_with_positive(log_2n: Tensor, mean_2n: Tensor, s_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, probability of the negatives, entropy: from the negatives' log-sum-exp and mean logit, in nats.

    Everything is relative to the positive, so that a loss near 0 keeps its digits: with x the log-sum of the
    negatives minus the positive, the loss is log(1 + e^x), and 1 - p of the positive is e^x / (1 + e^x) =
    -expm1(-loss), which a subtraction from 1 would round away.
    """
    x_2n = log_2n - s_n
    loss_2n = torch.logaddexp(x_2n, torch.zeros_like(x_2n))
    negative_2n = -torch.expm1(-loss_2n)
    return loss_2n, negative_2n, loss_2n - negative_2n * (mean_2n - s_n)


def _add_running(s_RC: Tensor, work_RC: Tensor, dim: int, largest: Tensor, total: Tensor, energy: Tensor) -> None:
    """Move some rows' maximum, shrink their sums to it, and add a block's."""
    new = torch.maximum(largest, s_RC.amax(dim))
    shrink = torch.exp2(largest - new)
    torch.sub(s_RC, new.unsqueeze(dim), out=work_RC).exp2_()
    total.mul_(shrink).add_(work_RC.sum(dim))
    work_RC.mul_(s_RC)
    energy.mul_(shrink).add_(work_RC.sum(dim))
    largest.copy_(new)
