"""Compute relatives of NT-Xent with the same operator: decoupled, debiased, with hard negatives, supervised.

All of them compare the same 2N rows by cosines, mask self-pairs, and return the mean over the 2N rows, exact over all
ranks. Accuracy and entropies are those of NT-Xent at the same temperature, so that runs can be compared.

Shapes: n pairs on this rank, D the width of z.
"""

import math

import torch.distributed as dist
from torch import Tensor, nn

from simclr_lightning.ntxent.loss import NTXentOutput, check, check_temperature
from simclr_lightning.ntxent.objectives import Objective
from simclr_lightning.ntxent.operator import compute


def dcl(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    sigma: float | None = None,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
) -> NTXentOutput:
    """Compute the decoupled contrastive loss of n pairs, in nats: NT-Xent without the positive in the denominator.

    It needs fewer negatives than NT-Xent, and so gains most with small batches. Values may be negative. Source: Yeh et
    al., "Decoupled Contrastive Learning" (arXiv 2110.06848), DCL and, with ``sigma``, DCLW.

    Args:
        z_a: (n, D) projections of the first view, floating point, as in `nt_xent`.
        z_b: (n, D) projections of the second view; row i is the positive of row i of ``z_a``.
        temperature: divisor of the cosines, above 0.
        sigma: above 0 weights each pair by 2 - exp(cosine / sigma) / (its mean over all pairs), without a gradient; the
            paper uses 0.5. None weights all pairs the same.
        group: the process group; None for all processes.
        gather: False compares only the rows of this rank.

    Raises:
        ValueError: an argument is wrong, or all ranks together have fewer than two pairs.

    >>> import torch
    >>> z = torch.eye(4)
    >>> f"{dcl(z, z, temperature=0.1).loss:.4f}"  # log 6 - 10: six negatives with cosine 0
    '-8.2082'
    """
    check(z_a, z_b, temperature)
    return NTXentOutput(*compute(z_a, z_b, temperature, _decoupled(sigma), group=group, gather=gather))


def debiased(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    tau_plus: float,
    beta: float = 0.0,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
) -> NTXentOutput:
    """Compute the debiased contrastive loss of n pairs, in nats; with ``beta``, hard negatives weigh more.

    Some negatives have the class of the row. The loss subtracts their expected part from the sum over the negatives.
    Source: Chuang et al., "Debiased Contrastive Learning" (arXiv 2007.00224); ``beta``: Robinson et al., "Contrastive
    Learning with Hard Negative Samples" (arXiv 2010.04592).

    Args:
        z_a: (n, D) projections of the first view, floating point, as in `nt_xent`.
        z_b: (n, D) projections of the second view; row i is the positive of row i of ``z_a``.
        temperature: divisor of the cosines, above 0.
        tau_plus: the assumed share of negatives with the row's class, in [0, 1), such as 0.1 for ten equal classes. 0
            with ``beta`` 0 is NT-Xent.
        beta: weights each negative by exp(beta * cosine / temperature), scaled to the mean 1 in each row; 0 or above.
        group: the process group; None for all processes.
        gather: False compares only the rows of this rank.

    Raises:
        ValueError: an argument is wrong, or all ranks together have fewer than two pairs.

    >>> import torch
    >>> z = torch.eye(4)
    >>> f"{debiased(z, z, temperature=0.5, tau_plus=0.1).loss:.4f}"  # log(1 + G / e^2) with G = (6 - 0.6 e^2) / 0.9
    '0.2115'
    """
    check(z_a, z_b, temperature)
    return NTXentOutput(*compute(z_a, z_b, temperature, _debiased(tau_plus, beta), group=group, gather=gather))


def sup_con(
    z_a: Tensor,
    z_b: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    group: dist.ProcessGroup | None = None,
    gather: bool = True,
) -> NTXentOutput:
    """Compute the supervised contrastive loss of n pairs, in nats: every image of the row's class is a positive.

    An image without a label has one positive, its other view, so without any label the loss is NT-Xent. Source: Khosla
    et al., "Supervised Contrastive Learning" (arXiv 2004.11362), equation 2 (L_out).

    Args:
        z_a: (n, D) projections of the first view, floating point, as in `nt_xent`.
        z_b: (n, D) projections of the second view, in the same order.
        labels: (n,) integers, the classes; a negative number for an image without a label.
        temperature: divisor of the cosines, above 0; the source uses 0.1.
        group: the process group; None for all processes.
        gather: False compares only the rows of this rank.

    Raises:
        ValueError: an argument is wrong, or no rank has rows.

    >>> import torch
    >>> z = torch.eye(4)
    >>> f"{sup_con(z, z, torch.tensor([0, 0, 1, -1]), temperature=0.5).loss:.4f}"
    '1.2611'
    """
    check(z_a, z_b, temperature)
    if labels.shape != z_a.shape[:1] or labels.is_floating_point() or labels.is_complex():
        shape = f"{tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        raise ValueError(f"labels must be one integer for each of the {len(z_a)} pairs, not {shape}")
    labels = labels.to(z_a.device).long()
    found = compute(z_a, z_b, temperature, Objective("sup_con"), labels=labels, group=group, gather=gather)
    return NTXentOutput(*found)


class _Loss(nn.Module):
    """Hold a temperature, and whether to compare the rows of all ranks."""

    def __init__(self, temperature: float, gather: bool, **numbers: float | None) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = float(temperature)
        self.gather = gather
        self.numbers = numbers

    def extra_repr(self) -> str:
        """Return the text inside the brackets of ``repr``."""
        return ", ".join(f"{k}={v}" for k, v in {"temperature": self.temperature, **self.numbers}.items())


class DCL(_Loss):
    """Compute `dcl` at a fixed temperature; a module without parameters.

    Args:
        temperature: divisor of the cosines, above 0.
        sigma: as in `dcl`; None weights all pairs the same.
        gather: False compares only the rows of this rank.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, temperature: float, sigma: float | None = None, gather: bool = True) -> None:
        super().__init__(temperature, gather, sigma=sigma)
        _decoupled(sigma)
        self.sigma = sigma

    def forward(self, z_a: Tensor, z_b: Tensor) -> NTXentOutput:
        """Return the loss of z_a and z_b, both (n, D), with its metrics."""
        return dcl(z_a, z_b, self.temperature, sigma=self.sigma, gather=self.gather)


class Debiased(_Loss):
    """Compute `debiased` at a fixed temperature; a module without parameters.

    Args:
        temperature: divisor of the cosines, above 0.
        tau_plus: the assumed share of negatives with the row's class, in [0, 1).
        beta: how much more hard negatives weigh, 0 or above.
        gather: False compares only the rows of this rank.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, temperature: float, tau_plus: float, beta: float = 0.0, gather: bool = True) -> None:
        super().__init__(temperature, gather, tau_plus=tau_plus, beta=beta)
        _debiased(tau_plus, beta)
        self.tau_plus, self.beta = tau_plus, beta

    def forward(self, z_a: Tensor, z_b: Tensor) -> NTXentOutput:
        """Return the loss of z_a and z_b, both (n, D), with its metrics."""
        return debiased(z_a, z_b, self.temperature, tau_plus=self.tau_plus, beta=self.beta, gather=self.gather)


class SupCon(_Loss):
    """Compute `sup_con` at a fixed temperature; a module without parameters.

    Args:
        temperature: divisor of the cosines, above 0.
        gather: False compares only the rows of this rank.

    Raises:
        ValueError: the temperature is not above 0 and finite.
    """

    def __init__(self, temperature: float, gather: bool = True) -> None:
        super().__init__(temperature, gather)

    def forward(self, z_a: Tensor, z_b: Tensor, labels: Tensor) -> NTXentOutput:
        """Return the loss of z_a and z_b, both (n, D), and their labels (n,), with its metrics."""
        return sup_con(z_a, z_b, labels, self.temperature, gather=self.gather)


def _decoupled(sigma: float | None) -> Objective:
    if sigma is not None and not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"loss.sigma is {sigma}; it must be above 0 and finite, for example 0.5, or null")
    return Objective("dcl", sigma=float(sigma or 0))


def _debiased(tau_plus: float, beta: float) -> Objective:
    if not 0 <= tau_plus < 1:
        raise ValueError(f"loss.tau_plus is {tau_plus}; it must be at least 0 and below 1, for example 0.1")
    if not (beta >= 0 and math.isfinite(beta)):
        raise ValueError(f"loss.beta is {beta}; it must be 0 or above and finite, for example 1.0")
    return Objective("debiased", tau_plus=float(tau_plus), beta=float(beta))
