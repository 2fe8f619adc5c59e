"""Sum over the negatives of each row of the similarity matrix: exp(logit), logit * exp(logit), and the largest logit.

With hard negatives (beta above 0), two more sums: exp(beta * logit) and exp((1 + beta) * logit).

Shapes as in ``operator``. A leading K = 2 separates the negatives in the row's view (0) from those in the other view
(1); the contrastive accuracy and entropy use only the candidates in the other view. Logits are in base 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

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
        beta: above 0 also sums exp2(beta * (logit - top)) and exp2((1 + beta) * (logit - top)).
    """

    def __init__(
        self, parts: Sequence[Part], n: int, *, like: Tensor, bound: float, running: bool, beta: float = 0.0
    ) -> None:
        self.running, self.beta = running, beta
        # Start from the smallest possible logit, since masked entries must not become the maximum.
        self.largest_K2n = like.new_full((2, 2, n), -bound)
        self.sum_K2n = like.new_zeros((2, 2, n))
        self.energy_K2n = like.new_zeros((2, 2, n))
        # exp2(beta * (logit - top)) first, then exp2((1 + beta) * (logit - top))
        self.hard_HK2n = like.new_zeros((2, 2, 2, n if beta else 0))
        # Slice once: slicing takes as long as the sums of a small block.
        self._parts = [
            [_Sums(*(x[kind][part] for x in (self.largest_K2n, self.sum_K2n, self.energy_K2n))) for part in parts]
            for kind in (0, 1)
        ]
        self._hard_parts = [[self.hard_HK2n[:, kind, view, rows] for view, rows in parts] for kind in (0, 1)]

    def add(
        self,
        s_RC: Tensor,
        work_RC: Tensor,
        hard_RC: Tensor | None = None,
        *,
        kind: int,
        row: int,
        column: int | None,
    ) -> None:
        """Add a block of logits to the sums of the parts ``row`` and, unless it is None, ``column``.

        ``kind`` is 0 where rows and columns are of one view, else 1. With a running maximum or with ``hard_RC``,
        ``s_RC`` is unchanged, and the others are scratch memory. Otherwise ``work_RC`` becomes exp2(s_RC), and ``s_RC``
        is overwritten.
        """
        axes = [(1, self._parts[kind][row], self._hard_parts[kind][row])]
        if column is not None:
            axes.append((0, self._parts[kind][column], self._hard_parts[kind][column]))
        if self.running:
            for dim, sums, hard_Hr in axes:
                self._add_running(s_RC, work_RC, hard_RC, dim, sums, hard_Hr)
            return
        if kind == 1:
            for dim, sums, _ in axes:
                torch.maximum(sums.largest, s_RC.amax(dim), out=sums.largest)
        torch.exp2(s_RC, out=work_RC)
        if hard_RC is not None:
            torch.mul(s_RC, self.beta, out=hard_RC).exp2_()
            for dim, _, hard_Hr in axes:
                hard_Hr[0].add_(hard_RC.sum(dim))
            hard_RC.mul_(work_RC)
            for dim, _, hard_Hr in axes:
                hard_Hr[1].add_(hard_RC.sum(dim))
        energy_RC = s_RC.mul_(work_RC) if hard_RC is None else torch.mul(s_RC, work_RC, out=hard_RC)
        for dim, sums, _ in axes:
            sums.total.add_(work_RC.sum(dim))
            sums.energy.add_(energy_RC.sum(dim))

    def _add_running(
        self, s_RC: Tensor, work_RC: Tensor, hard_RC: Tensor | None, dim: int, sums: "_Sums", hard_Hr: Tensor
    ) -> None:
        """Update the running maximum of some rows, rescale their sums to it, and add the sums of a block."""
        new = torch.maximum(sums.largest, s_RC.amax(dim))
        rise = sums.largest - new
        torch.sub(s_RC, new.unsqueeze(dim), out=work_RC)
        if hard_RC is not None:
            for power, hard_r in zip((self.beta, 1 + self.beta), hard_Hr, strict=True):
                torch.mul(work_RC, power, out=hard_RC).exp2_()
                hard_r.mul_(torch.exp2(rise * power)).add_(hard_RC.sum(dim))
        work_RC.exp2_()
        shrink = rise.exp2_()
        sums.total.mul_(shrink).add_(work_RC.sum(dim))
        work_RC.mul_(s_RC)
        sums.energy.mul_(shrink).add_(work_RC.sum(dim))
        sums.largest.copy_(new)

    def hard_logs(self) -> tuple[Tensor, Tensor]:
        """Return log sum exp(beta * logit) and log sum exp((1 + beta) * logit) of each row, (2, n), in nats."""
        logs_HK2n = self.hard_HK2n.log2()
        if self.running:
            powers_H111 = torch.tensor([self.beta, 1 + self.beta]).to(logs_HK2n)[:, None, None, None]
            logs_HK2n += powers_H111 * self.largest_K2n
        logs_HK2n.clamp_(min=torch.finfo(logs_HK2n.dtype).min).mul_(LN2)
        low_2n, high_2n = torch.logaddexp(logs_HK2n[:, 0], logs_HK2n[:, 1])
        return low_2n, high_2n

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
            pull_2n=negative_2n,
            lse_gn=loss_2n / LN2 + positive_n,
            negatives_2n=log_2n,
        )


class _Sums(NamedTuple):
    """The slices of the three sums that belong to one part."""

    largest: Tensor
    total: Tensor
    energy: Tensor


@dataclass(frozen=True)
class Rows:
    """The values of each row: those of ``NTXentOutput``, and what the gradient needs."""

    loss_2n: Tensor
    accuracy_2n: Tensor
    entropy_2n: Tensor
    entropy_all_2n: Tensor
    pull_2n: Tensor
    """Minus the derivative of the row's loss by the logit of its positive; 1 - p of the positive for NT-Xent."""
    lse_gn: Tensor
    """Minus the logarithm of the weight of exp(logit) of each negative, in base 2. For NT-Xent the log-sum-exp over the
    2N - 1 candidates of the row, (2, n). With hard negatives (4, n): first for exp((1 + beta) logit), then for
    exp(beta logit), which is subtracted."""
    negatives_2n: Tensor
    """The log-sum-exp over the negatives of the row, in nats."""

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
