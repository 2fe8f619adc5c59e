"""Turn the sums of NT-Xent's rows into the rows of a related loss: decoupled, debiased, hard negatives, supervised.

Shapes as in ``operator``. S_i is the sum of exp(s_ij) over the M = 2N - 2 negatives of row i, and P_i is exp(s_ij) of
its positive. A loss differs from NT-Xent in ``Rows``: its value, the weight of each exp(s_ij) and the pull of the
positive. The supervised loss has more positives, so its gradient has one more term.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from simclr_lightning.ntxent.rows import LN2, Rows, RowSums

NAMES: Final = ("nt_xent", "dcl", "debiased", "sup_con")


@dataclass(frozen=True)
class Objective:
    """The loss that the operator computes, and its numbers."""

    name: str = "nt_xent"
    """One of `NAMES`."""
    sigma: float = 0.0
    """Of dcl: the width of the positives' weights; 0 weights all the same."""
    tau_plus: float = 0.0
    """Of debiased: the assumed share of negatives with the row's class, in [0, 1)."""
    beta: float = 0.0
    """Of debiased: how much more the hard negatives weigh; 0 weights all the same."""

    def rows(self, sums: RowSums, positive_n: Tensor, v_2ND: Tensor, temperature: float) -> Rows:
        """Return the values of this rank's rows.

        Args:
            sums: of every negative of the rows.
            positive_n: the logits of the rows' positives, in base 2.
            v_2ND: the rows of all ranks from ``normalize``.
            temperature: divisor of the cosines.
        """
        rows = sums.finish(positive_n)
        if self.name == "dcl":
            return _decoupled(rows, positive_n, self._weights(positive_n, v_2ND, temperature))
        if self.name == "debiased":
            return self._debiased(rows, sums, positive_n * LN2, 2 * v_2ND.shape[1] - 2, temperature)
        return rows

    def _weights(self, positive_n: Tensor, v_2ND: Tensor, temperature: float) -> Tensor:
        """Return the constant weights of the positives, (n,): 2 - exp(cosine / sigma) / its mean over all pairs."""
        if self.sigma == 0:
            return torch.ones_like(positive_n)
        stretch = temperature * LN2 / self.sigma  # from logits in base 2 to cosine / sigma
        all_N = (v_2ND[0] * v_2ND[1]).sum(1) * stretch
        log_mean = torch.logsumexp(all_N, 0) - math.log(len(all_N))
        return 2 - (positive_n * stretch - log_mean).exp()

    def _debiased(self, rows: Rows, sums: RowSums, s_n: Tensor, negatives: int, temperature: float) -> Rows:
        """Return the rows of -log(P / (P + G)), where G estimates the sum over the negatives of other classes.

        G = max((S' - tau_plus M P) / (1 - tau_plus), M exp(-1 / temperature)). S' is S, or with hard negatives
        M sum exp((1 + beta) s) / sum exp(beta s), so that weights exp(beta s) have the mean 1.
        """
        log_m, log_rest = math.log(negatives), math.log1p(-self.tau_plus)
        total_2n = rows.negatives_2n
        if self.beta:
            low_2n, high_2n = sums.hard_logs()
            total_2n = log_m + high_2n - low_2n
        x_2n = total_2n - s_n  # log (S' / P)
        bias = self.tau_plus * negatives
        removed_2n = torch.log1p(-(bias * (-x_2n).exp()).clamp(max=1)) if bias else torch.zeros_like(x_2n)
        estimate_2n, floor_n = x_2n + removed_2n - log_rest, log_m - 1 / temperature - s_n
        active_2n = estimate_2n > floor_n
        loss_2n = torch.logaddexp(torch.maximum(estimate_2n, floor_n), torch.zeros_like(x_2n))
        # The derivative of the loss by S' is 1 / ((1 - tau_plus) (P + G)); log (P + G) = s + loss.
        lse_2n = torch.where(active_2n, s_n + loss_2n + log_rest, math.inf)
        drawn_2n = active_2n * (-loss_2n).exp() * (bias / (1 - self.tau_plus))
        if self.beta:
            share_2n = lse_2n - log_m + low_2n
            subtracted_2n = share_2n + low_2n - high_2n - math.log(self.beta)
            lse_2n = torch.cat((share_2n - math.log1p(self.beta), subtracted_2n))
        pull_2n = drawn_2n - torch.expm1(-loss_2n)
        return replace(rows, loss_2n=loss_2n, pull_2n=pull_2n, lse_gn=lse_2n / LN2)


def _decoupled(rows: Rows, positive_n: Tensor, weight_n: Tensor) -> Rows:
    """Return the rows of log S - w s: the positive is not in the denominator."""
    loss_2n = rows.negatives_2n - weight_n * positive_n * LN2
    return replace(rows, loss_2n=loss_2n, pull_2n=weight_n.expand_as(loss_2n), lse_gn=rows.negatives_2n / LN2)


class Classes:
    """The images of every class among all pairs, for the supervised loss.

    Args:
        labels_N: the classes of the pairs of all ranks, int64; a negative label is of no class.
        v_2ND: the rows of all ranks from ``normalize``.
        own: the pairs of this rank.
    """

    def __init__(self, labels_N: Tensor, v_2ND: Tensor, own: slice) -> None:
        self.labels_N, self.v_2ND, self.own = labels_N, v_2ND, own

    def of_rows(self) -> tuple[Tensor, Tensor]:
        """Return the sum of the other rows with the row's class (2, n, D), and their number (n,)."""
        # Number the classes by sorting, since `unique` would make the host wait for the device.
        sorted_N, order_N = self._marked().sort()
        new_N = torch.zeros_like(sorted_N)
        new_N[1:] = (sorted_N[1:] != sorted_N[:-1]).long()
        group_N = torch.empty_like(new_N).scatter_(0, order_N, new_N.cumsum(0))
        count_N = torch.zeros_like(group_N).scatter_add_(0, group_N, torch.ones_like(group_N))
        pair_ND = self.v_2ND.sum(0)
        total_ND = torch.zeros_like(pair_ND).index_add_(0, group_N, pair_ND)
        v_2nD = self.v_2ND[:, self.own]
        return total_ND[group_N[self.own]] - v_2nD, 2 * count_N[group_N[self.own]] - 1

    def apply(self, rows: Rows, positive_n: Tensor, others_2nD: Tensor, count_n: Tensor) -> Rows:
        """Return the rows with the mean logit of all positives in place of the logit of the own pair."""
        mean_2n = (self.v_2ND[:, self.own] * others_2nD).sum(2) / count_n
        added_2n = torch.where(count_n > 1, positive_n - mean_2n, 0) * LN2
        return replace(rows, loss_2n=rows.loss_2n + added_2n)

    def add_gradient(self, g_2nD: Tensor, others_2nD: Tensor, count_n: Tensor) -> None:
        """Add what `apply` has added to the loss to the result of ``Blocks.gradient``, in place."""
        pair_2nD = self.v_2ND[:, self.own].flip(0)
        g_2nD += torch.where(count_n[:, None] > 1, 2 * (pair_2nD - others_2nD / count_n[:, None]), 0)

    def _marked(self) -> Tensor:
        """Return the labels (N,), where each pair without a class has its own number."""
        numbers_N = torch.arange(len(self.labels_N), device=self.labels_N.device)
        return torch.where(self.labels_N < 0, -1 - numbers_N, self.labels_N)
