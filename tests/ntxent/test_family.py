"""Compare the relatives of NT-Xent with dense float64 definitions by autograd, and with other libraries."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simclr_lightning.ntxent import DCL, Debiased, NTXentOutput, SupCon, blocks, dcl, debiased, nt_xent, sup_con

Dense = Callable[..., Tensor]
BIG = 130  # pairs: float32 inputs are computed in float32
LABELS = torch.tensor([0, 1, 0, -1, 2, 0, 1, -1, 5, 0])


def labels_of(n: int) -> Tensor:
    return LABELS.repeat(n // len(LABELS) + 1)[:n]


def logits(z_a: Tensor, z_b: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits (2N, 2N), those of the positives (2N,) and the mask of the negatives."""
    u = torch.nn.functional.normalize(torch.cat([z_a, z_b]), dim=1)
    s, n = u @ u.T / temperature, len(z_a)
    own = torch.eye(n, dtype=torch.bool).repeat(2, 2)
    return s, s.diagonal(n).repeat(2), ~own


def dense_dcl(z_a: Tensor, z_b: Tensor, temperature: float, sigma: float | None = None) -> Tensor:
    s, positive, negative = logits(z_a, z_b, temperature)
    weight = torch.ones_like(positive)
    if sigma:
        c = (positive * temperature / sigma).detach()
        weight = 2 - len(c) * c.softmax(0)
    return (s.masked_fill(~negative, -math.inf).logsumexp(1) - weight * positive).mean()


def dense_debiased(z_a: Tensor, z_b: Tensor, temperature: float, tau_plus: float, beta: float = 0.0) -> Tensor:
    s, positive, negative = logits(z_a, z_b, temperature)
    m = 2 * len(z_a) - 2
    s_neg = s[negative].view(2 * len(z_a), m)
    weight = m * (beta * s_neg).softmax(1)
    total = (weight * s_neg.exp()).sum(1)
    estimate = (total - tau_plus * m * positive.exp()) / (1 - tau_plus)
    g = torch.maximum(estimate, torch.full_like(estimate, m * math.exp(-1 / temperature)))
    return torch.logaddexp(g.log() - positive, torch.zeros_like(g)).mean()  # -log(P / (P + G)), precise near 0


def dense_sup_con(z_a: Tensor, z_b: Tensor, temperature: float, labels: Tensor) -> Tensor:
    s, _, _ = logits(z_a, z_b, temperature)
    y = torch.where(labels < 0, -1 - torch.arange(len(labels)), labels).repeat(2)
    own = torch.eye(len(y), dtype=torch.bool)
    same = (y[:, None] == y) & ~own
    log_p = s - s.masked_fill(own, -math.inf).logsumexp(1, keepdim=True)
    return -((log_p * same).sum(1) / same.sum(1)).mean()


# name -> (the function of this package, its dense definition); both take (z_a, z_b, temperature)
LOSSES: dict[str, tuple[Callable[..., NTXentOutput], Dense]] = {
    "dcl": (dcl, dense_dcl),
    "dclw": (lambda *x: dcl(*x, sigma=0.5), lambda *x: dense_dcl(*x, sigma=0.5)),
    "debiased": (lambda *x: debiased(*x, tau_plus=0.1), lambda *x: dense_debiased(*x, tau_plus=0.1)),
    "floor": (lambda *x: debiased(*x, tau_plus=0.9), lambda *x: dense_debiased(*x, tau_plus=0.9)),
    "hard": (
        lambda *x: debiased(*x, tau_plus=0.1, beta=1.0),
        lambda *x: dense_debiased(*x, tau_plus=0.1, beta=1.0),
    ),
    "half": (
        lambda *x: debiased(*x, tau_plus=0.0, beta=0.5),
        lambda *x: dense_debiased(*x, tau_plus=0.0, beta=0.5),
    ),
    "sup_con": (
        lambda z_a, z_b, t: sup_con(z_a, z_b, labels_of(len(z_a)), t),
        lambda z_a, z_b, t: dense_sup_con(z_a, z_b, t, labels_of(len(z_a))),
    ),
}


def pair(n: int, d: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(n)
    z_a, z_b = torch.randn(2, n, d, generator=draw, dtype=torch.float64)
    z_b = z_a + 0.5 * z_b
    return z_a.to(dtype).requires_grad_(), z_b.to(dtype).requires_grad_()


def both(name: str, z_a: Tensor, z_b: Tensor, temperature: float) -> tuple[float, float, float]:
    """Return the loss, that of the definition, and the error of the gradient, relative where its norm is above 1."""
    function, dense = LOSSES[name]
    loss = function(z_a, z_b, temperature).loss
    found = torch.cat(torch.autograd.grad(loss, (z_a, z_b))).double()
    x_a, x_b = (z.detach().double().requires_grad_() for z in (z_a, z_b))
    expected = dense(x_a, x_b, temperature)
    gradient = torch.cat(torch.autograd.grad(expected, (x_a, x_b)))
    assert gradient.norm() > 0
    return loss.item(), expected.item(), ((found - gradient).norm() / gradient.norm().clamp(min=1)).item()


@pytest.mark.parametrize("side", [16, 1000])
@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("temperature", [0.005, 0.03, 0.1, 0.5, 5])
@pytest.mark.parametrize("n", [2, 5, 45])
@pytest.mark.parametrize("name", LOSSES)
def test_float64_is_the_definition(
    name: str, n: int, temperature: float, memory: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIDES", {"cpu": {10**9: side}})
    monkeypatch.setattr(blocks, "MEMORY", {"cpu": memory})
    found, expected, error = both(name, *pair(n), temperature)
    exact = 1e-12 / min(1, temperature)  # the definitions round too
    assert found == pytest.approx(expected, rel=exact, abs=exact)
    assert error < 1e-13 / min(1, temperature)


@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.5])
@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_close(name: str, temperature: float) -> None:
    found, expected, error = both(name, *pair(BIG, 32, torch.float32), temperature)
    assert found == pytest.approx(expected, rel=2e-6, abs=2e-6)
    # Debiased losses subtract two large numbers at a small temperature, which magnifies the rounding of cosines.
    loss_of_digits = 10 if name in ("debiased", "floor", "hard") and temperature < 0.1 else 1
    assert error < 2e-6 * max(1, 0.05 / temperature) * loss_of_digits


@pytest.mark.parametrize("temperature", [0.005, 0.02])
@pytest.mark.parametrize("name", LOSSES)
def test_a_small_temperature_stays_finite(name: str, temperature: float) -> None:
    z_a, z_b = pair(BIG, 3, torch.float32)
    function, _ = LOSSES[name]
    loss = function(z_a, z_b.detach() * 0 + z_a, temperature).loss  # positives of cosine 1
    (g,) = torch.autograd.grad(loss, z_a)
    assert loss.isfinite()
    assert g.isfinite().all()


def test_the_metrics_are_those_of_nt_xent() -> None:
    z_a, z_b = pair(33)
    expected = nt_xent(z_a, z_b, 0.2)
    for function, _ in LOSSES.values():
        for name in ("accuracy", "entropy", "entropy_all"):
            torch.testing.assert_close(getattr(function(z_a, z_b, 0.2), name), getattr(expected, name))


def test_without_bias_and_without_labels_the_loss_is_nt_xent() -> None:
    z_a, z_b = pair(33)
    expected = nt_xent(z_a, z_b, 0.2).loss
    torch.testing.assert_close(debiased(z_a, z_b, 0.2, tau_plus=0).loss, expected, rtol=1e-12, atol=0)
    alone = torch.full((33,), -1)
    torch.testing.assert_close(sup_con(z_a, z_b, alone, 0.2).loss, expected, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # lightly's
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_dcl_is_lightlys(sigma: float | None) -> None:
    peer = pytest.importorskip("lightly.loss.dcl_loss")
    z_a, z_b = pair(40)
    loss = peer.DCLLoss(0.1) if sigma is None else peer.DCLWLoss(0.1, sigma=sigma)
    torch.testing.assert_close(dcl(z_a, z_b, 0.1, sigma=sigma).loss, loss(z_a, z_b), rtol=1e-12, atol=1e-12)


def test_sup_con_is_that_of_pytorch_metric_learning() -> None:
    peer = pytest.importorskip("pytorch_metric_learning.losses")
    z_a, z_b = pair(40)
    labels = torch.arange(40) % 6
    expected = peer.SupConLoss(temperature=0.1)(torch.cat([z_a, z_b]), labels.repeat(2))
    torch.testing.assert_close(sup_con(z_a, z_b, labels, 0.1).loss, expected, rtol=1e-12, atol=1e-12)


def test_zero_rows_have_gradient_zero() -> None:
    z_a, z_b = pair(6)
    with torch.no_grad():
        z_a[2] = 0
    for function, _ in LOSSES.values():
        g_a, g_b = torch.autograd.grad(function(z_a, z_b, 0.2).loss, (z_a, z_b))
        assert g_a[2].count_nonzero() == 0
        assert g_b.isfinite().all()


def test_modules_are_their_functions() -> None:
    z_a, z_b = pair(12)
    labels = labels_of(12)
    assert DCL(0.2, sigma=0.4)(z_a, z_b).loss == dcl(z_a, z_b, 0.2, sigma=0.4).loss
    assert Debiased(0.2, 0.1, beta=2)(z_a, z_b).loss == debiased(z_a, z_b, 0.2, tau_plus=0.1, beta=2).loss
    assert SupCon(0.2)(z_a, z_b, labels).loss == sup_con(z_a, z_b, labels, 0.2).loss


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: dcl(z, z, 0.0), "loss.temperature is 0.0"),
        (lambda z: dcl(z, z, 0.1, sigma=0.0), "loss.sigma is 0.0"),
        (lambda z: dcl(z[:1], z[:1], 0.1), "dcl needs at least two pairs"),
        (lambda z: debiased(z, z, 0.1, tau_plus=1.0), "loss.tau_plus is 1.0"),
        (lambda z: debiased(z, z, 0.1, tau_plus=-0.1), "loss.tau_plus is -0.1"),
        (lambda z: debiased(z, z, 0.1, tau_plus=0.1, beta=-1.0), "loss.beta is -1.0"),
        (lambda z: debiased(z[:1], z[:1], 0.1, tau_plus=0.1), "debiased needs at least two pairs"),
        (lambda z: sup_con(z, z, torch.zeros(3), 0.1), "one integer for each of the 4 pairs"),
        (lambda z: sup_con(z, z, torch.zeros(4), 0.1), "one integer for each of the 4 pairs"),
        (lambda z: Debiased(0.1, math.nan), "loss.tau_plus is nan"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.rand(4, 3))
