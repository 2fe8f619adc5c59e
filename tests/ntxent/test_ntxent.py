"""Compare NT-Xent with a naive float64 NumPy version of the paper's Algorithm 1, and with closed forms."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import profile

from simclr_lightning.ntxent import NTXent, blocks, nt_xent

BIG = 150  # pairs: more than SMALL_BATCH, so float32 inputs are computed in float32


def naive(z_a: Tensor, z_b: Tensor, temperature: float) -> dict[str, np.ndarray]:
    """Return the loss, its gradient (2N, D), accuracy and entropies, computed row by row in float64."""
    z = torch.cat([z_a, z_b]).detach().double().numpy()
    rows, pairs = len(z), len(z_a)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    zero = norm < 1e-12
    u = np.where(zero, 0, z / np.where(zero, 1, norm))
    similarity = u @ u.T / temperature
    loss = accuracy = entropy = entropy_all = 0.0
    gradient = np.zeros_like(u)
    for i in range(rows):
        positive = (i + pairs) % rows
        others = [j for j in range(rows) if j != i]
        other_view = range(pairs, rows) if i < pairs else range(pairs)
        p_all, log_sum = softmax(similarity[i, others])
        loss += (log_sum - similarity[i, positive]) / rows
        entropy_all -= xlogx(p_all) / rows
        entropy -= xlogx(softmax(similarity[i, other_view])[0]) / rows
        accuracy += (similarity[i, other_view].argmax() == i % pairs) / rows
        for j, p in zip(others, p_all, strict=True):
            # 1 - p of the positive, as the exact sum of the other probabilities
            weight = p if j != positive else -sum(q for k, q in zip(others, p_all, strict=True) if k != positive)
            gradient[i] += weight * u[j] / temperature / rows
            gradient[j] += weight * u[i] / temperature / rows
    gradient -= (gradient * u).sum(1, keepdims=True) * u
    gradient = np.where(zero, 0, gradient / np.where(zero, 1, norm))
    figures = {"loss": loss, "accuracy": accuracy, "entropy": entropy, "entropy_all": entropy_all}
    return {"gradient": gradient, **{name: np.asarray(value) for name, value in figures.items()}}


def softmax(logits: np.ndarray) -> tuple[np.ndarray, float]:
    top = logits.max()
    weights = np.exp(logits - top)
    return weights / weights.sum(), top + math.log(weights.sum())


def xlogx(p: np.ndarray) -> float:
    return float((p[p > 0] * np.log(p[p > 0])).sum())


def dense(z_a: Tensor, z_b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient by autograd on the dense float64 matrix: fast enough for many blocks."""
    z = torch.cat([z_a, z_b]).detach().double().requires_grad_()
    u = torch.nn.functional.normalize(z, dim=1)
    similarity = (u @ u.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    loss = torch.nn.functional.cross_entropy(similarity, torch.arange(len(z)).roll(len(z_a)))
    return loss.detach(), torch.autograd.grad(loss, z)[0]


def pair(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    z_a, z_b = torch.randn(2, n, d, generator=draw, dtype=torch.float64).to(dtype)
    return z_a.requires_grad_(), z_b.requires_grad_()


def gradient(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    return torch.cat(torch.autograd.grad(nt_xent(z_a, z_b, temperature).loss, (z_a, z_b)))


def relative(value: Tensor, expected: Tensor | np.ndarray) -> float:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return float((value.double() - expected).norm() / expected.norm())


def tolerance(dtype: torch.dtype, temperature: float) -> float:
    return 1e-12 if dtype == torch.float64 else 1e-6 * max(1, 0.05 / temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.001, 0.005, 0.02, 0.025, 0.1, 0.5, 10])
@pytest.mark.parametrize(("n", "d"), [(2, 16), (3, 4), (17, 8), (64, 128)])
def test_everything_is_algorithm_1(n: int, d: int, temperature: float, dtype: torch.dtype) -> None:
    z_a, z_b = pair(n, d, seed=n, dtype=dtype)
    expected = naive(z_a, z_b, temperature)
    output = nt_xent(z_a, z_b, temperature)
    # Float64 is compared at the precision of the oracle, which rounds too.
    exact = 1e-12 / min(1, temperature) if dtype == torch.float64 else 1e-6
    for name in ("loss", "accuracy", "entropy", "entropy_all"):
        value = getattr(output, name)
        assert float(value.detach()) == pytest.approx(float(expected[name]), rel=exact, abs=exact), name
        assert value.requires_grad == (name == "loss")
    error = relative(gradient(z_a, z_b, temperature), expected["gradient"])
    assert error <= max(tolerance(dtype, temperature), 2e-15 / temperature)


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.024, 0.025, 0.1, 1, 10])
@pytest.mark.parametrize("n", [BIG, 401, 1100])
def test_float32_over_many_blocks(n: int, temperature: float) -> None:
    z_a, z_b = pair(n, 64, seed=n)
    loss, expected = dense(z_a, z_b, temperature)
    output = nt_xent(z_a, z_b, temperature)
    assert float(output.loss.detach()) == pytest.approx(float(loss), rel=1e-6)
    assert relative(gradient(z_a, z_b, temperature), expected) <= tolerance(torch.float32, temperature)


@pytest.mark.parametrize("temperature", [0.01, 0.3])
@pytest.mark.parametrize("memory", [0, 1 << 17, 1 << 30])
@pytest.mark.parametrize("side", [16, 48, 1000])
def test_the_block_policy_changes_nothing(
    side: int, memory: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIDES", {"cpu": {10**9: side}})
    monkeypatch.setattr(blocks, "MEMORY", {"cpu": memory})
    z_a, z_b = pair(101, 12, dtype=torch.float64)
    loss, expected = dense(z_a, z_b, temperature)
    assert float(nt_xent(z_a, z_b, temperature).loss.detach()) == pytest.approx(float(loss), rel=1e-13)
    assert relative(gradient(z_a, z_b, temperature), expected) < 1e-12


def test_only_the_upper_triangle_is_visited_and_every_entry_of_it() -> None:
    ranges = blocks.parts(1000, 384)
    seen = np.zeros((2000, 2000), dtype=int)
    for block in blocks.layout(ranges, ranges, start=0, symmetric=True):
        (row_view, row), (column_view, column) = ranges[block.row], ranges[block.column]
        rows = slice(1000 * row_view + row.start, 1000 * row_view + row.stop)
        columns = slice(1000 * column_view + column.start, 1000 * column_view + column.stop)
        seen[rows, columns] += 1
        if block.mirrored:
            seen[columns, rows] += 1
    assert (seen == 1).all()
    visited = sum(math.prod(b.shape) for b in blocks.layout(ranges, ranges, start=0, symmetric=True))
    assert visited < 0.6 * 2000**2


@pytest.mark.parametrize("temperature", [0.005, 0.03, 0.5])
def test_self_pairs_are_masked_not_subtracted(temperature: float) -> None:
    """All rows orthogonal: ln(2N - 1). At 0.03, exp(1/tau) is 3e14, and float32 would lose 2N - 2 added to it."""
    basis = torch.eye(2 * BIG)
    output = nt_xent(basis[:BIG], basis[BIG:], temperature)
    assert float(output.loss) == pytest.approx(math.log(2 * BIG - 1), rel=1e-6)
    assert float(output.entropy) == pytest.approx(math.log(BIG), rel=1e-6)
    assert float(output.entropy_all) == pytest.approx(math.log(2 * BIG - 1), rel=1e-6)


@pytest.mark.parametrize("temperature", [1e-4, 0.005, 0.011, 0.02])
def test_no_overflow_at_small_temperatures(temperature: float) -> None:
    """All rows equal: every cosine is 1, and exp(1/tau) overflows float32 at temperatures below 0.0113."""
    z_a, z_b = (torch.ones(BIG, 8, requires_grad=True) for _ in range(2))
    output = nt_xent(z_a, z_b, temperature)
    assert float(output.loss.detach()) == pytest.approx(math.log(2 * BIG - 1), rel=1e-3)
    assert gradient(z_a, z_b, temperature).isfinite().all()


def test_a_running_maximum_that_rises_and_falls_from_block_to_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_SIDES", {"cpu": {10**9: 32}})
    z_a, z_b = pair(BIG, 3)
    with torch.no_grad():  # a cluster in the last block, an opposite one in the first
        z_a[-20:] = torch.tensor([1.0, 0, 0]) + 0.01 * z_a[-20:]
        z_b[:20] = torch.tensor([-1.0, 0, 0]) + 0.01 * z_b[:20]
    loss, expected = dense(z_a, z_b, 0.006)
    assert float(nt_xent(z_a, z_b, 0.006).loss.detach()) == pytest.approx(float(loss), rel=1e-6)
    assert relative(gradient(z_a, z_b, 0.006), expected) <= tolerance(torch.float32, 0.006)


def test_close_positives_keep_their_digits() -> None:
    """Cosine 0.9 with the positive, else 0: 1 - p is 5e-6, of which 1 - float32(p) would have two correct digits."""
    basis = torch.eye(2 * BIG)
    z_a = basis[:BIG].clone().requires_grad_()
    z_b = (0.9 * basis[:BIG] + math.sqrt(1 - 0.81) * basis[BIG:]).requires_grad_()
    negatives = (2 * BIG - 2) * math.exp(-0.9 / 0.05)
    output = nt_xent(z_a, z_b, 0.05)
    assert float(output.loss.detach()) == pytest.approx(math.log1p(negatives), rel=1e-5)
    assert relative(gradient(z_a, z_b, 0.05), dense(z_a, z_b, 0.05)[1]) < 1e-5


@pytest.mark.parametrize("temperature", [0.005, 0.05, 0.5])
@pytest.mark.parametrize("n", [8, BIG])
def test_positives_of_cosine_0_9_to_1(n: int, temperature: float) -> None:
    z_a, noise = pair(n, 32, seed=3)
    with torch.no_grad():
        direction = torch.nn.functional.normalize(z_a, dim=1)
        noise -= (noise * direction).sum(1, keepdim=True) * direction
        cosine = torch.linspace(0.9, 1, n).unsqueeze(1)
        off = (1 - cosine**2).sqrt() * torch.nn.functional.normalize(noise, dim=1)
        z_b = (3 * (cosine * direction + off)).requires_grad_()
    _, expected = dense(z_a, z_b, temperature)
    norms = torch.cat([z_a, z_b]).detach().double().norm(dim=1)
    error = (gradient(z_a, z_b, temperature).double() - expected).norm(dim=1)
    assert (error <= 1e-6 / temperature / (temperature * 2 * n * norms)).all()


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("n", [5, BIG])
def test_zero_rows_have_cosine_0_and_no_gradient(n: int, temperature: float) -> None:
    z_a, z_b = pair(n, 6)
    with torch.no_grad():
        z_a[1] = 0
        z_b[3] = 1e-14
        z_a[4] = z_b[4] = 0
    expected = naive(z_a, z_b, temperature)
    g = gradient(z_a, z_b, temperature)
    assert (g[[1, 4, n + 3, n + 4]] == 0).all()
    assert relative(g, expected["gradient"]) < 1e-5
    assert float(nt_xent(z_a, z_b, temperature).loss.detach()) == pytest.approx(float(expected["loss"]), rel=1e-6)


@pytest.mark.parametrize("n", [6, BIG])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6, 1e30])
def test_any_norm(n: int, scale: float) -> None:
    z_a, z_b = pair(n, 16)
    with torch.no_grad():
        z_a *= scale
        z_b[::2] *= scale
    loss, expected = dense(z_a, z_b, 0.1)
    g = gradient(z_a, z_b, 0.1)
    assert float(nt_xent(z_a, z_b, 0.1).loss.detach()) == pytest.approx(float(loss), rel=1e-6)
    assert g.isfinite().all()
    assert relative(g, expected) < 1e-6
    large = expected.norm(dim=1) < 1e-20  # gradients of rows with a large norm are tiny; compare the others alone
    assert relative(g[~large], expected[~large]) < 1e-6


@pytest.mark.parametrize("n", [1, 2])
def test_a_single_pair_has_nothing_to_learn(n: int) -> None:
    z_a, z_b = (torch.ones(n, 4, requires_grad=True) for _ in range(2))
    output = nt_xent(z_a, z_b, 0.1)
    assert float(output.loss.detach()) == pytest.approx(math.log(2 * n - 1), abs=1e-7)
    assert float(output.entropy) == pytest.approx(math.log(n), abs=1e-7)
    assert gradient(z_a, z_b, 0.1).norm() < 1e-6


def test_collapsed_embeddings_are_never_right() -> None:
    z = torch.ones(BIG, 4)
    assert float(nt_xent(z, z, 0.5).accuracy) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [4, BIG])
def test_half_precision_is_computed_in_float32(n: int, dtype: torch.dtype) -> None:
    z_a, z_b = pair(n, 64, dtype=dtype)
    plain = nt_xent(z_a.float(), z_b.float(), 0.05)
    with torch.autocast("cpu", dtype=dtype):
        output = nt_xent(z_a, z_b, 0.05)
        under_autocast = nt_xent(z_a.float(), z_b.float(), 0.05)
    assert output.loss.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(output, plain, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(under_autocast, plain, strict=True))
    g_a, _ = torch.autograd.grad(output.loss, (z_a, z_b))
    assert g_a.dtype == dtype
    assert relative(g_a, dense(z_a, z_b, 0.05)[1][:n]) < 0.01


def test_the_same_bits_every_time() -> None:
    z_a, z_b = pair(700, 32)
    first, second = (gradient(z_a, z_b, 0.1) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(nt_xent(z_a, z_b, 0.1).loss, nt_xent(z_a, z_b, 0.1).loss)


def test_the_order_of_pairs_and_of_views_does_not_matter() -> None:
    z_a, z_b = pair(50, 8, dtype=torch.float64)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    loss = float(nt_xent(z_a, z_b, 0.2).loss.detach())
    assert float(nt_xent(z_a[order], z_b[order], 0.2).loss.detach()) == pytest.approx(loss, rel=1e-13)
    assert float(nt_xent(z_b, z_a, 0.2).loss.detach()) == pytest.approx(loss, rel=1e-13)


def test_gradients_follow_the_chain_rule_and_add_up() -> None:
    z_a, z_b = pair(9, 5, dtype=torch.float64)
    expected = gradient(z_a, z_b, 0.3)
    loss = nt_xent(z_a, z_b, 0.3).loss
    (3 * loss).backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(torch.cat([z_a.grad, z_b.grad]), 4 * expected)


def test_one_view_alone_may_need_its_gradient() -> None:
    z_a, z_b = pair(9, 5, dtype=torch.float64)
    expected = gradient(z_a, z_b, 0.3)
    nt_xent(z_a.detach(), z_b, 0.3).loss.backward()
    assert z_a.grad is None
    torch.testing.assert_close(z_b.grad, expected[9:], rtol=0, atol=0)


def test_without_gradient_the_values_are_the_same() -> None:
    z_a, z_b = pair(BIG, 5)
    output = nt_xent(z_a, z_b, 0.3)
    with torch.no_grad():
        quiet = nt_xent(z_a, z_b, 0.3)
    assert not quiet.loss.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(output, quiet, strict=True))


def test_a_second_derivative_is_refused() -> None:
    z_a, z_b = pair(4, 3)
    (g,) = torch.autograd.grad(nt_xent(z_a, z_b, 0.5).loss, z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        g.square().sum().backward()
    (g,) = torch.autograd.grad(nt_xent(z_a, z_b, 0.5).loss, z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(g.sum(), z_b)


def test_a_nan_shows() -> None:
    z_a, z_b = pair(BIG, 4)
    with torch.no_grad():
        z_a[7, 2] = math.nan
    assert nt_xent(z_a, z_b, 0.1).loss.isnan()
    assert nt_xent(z_a, z_b, 0.01).loss.isnan()


class Around(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 4)
        self.loss = NTXent(0.2)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        return 2 * self.loss(self.linear(x_a), self.linear(x_b)).loss


def test_a_module_around_it_compiles() -> None:
    torch.manual_seed(0)
    module, (x_a, x_b) = Around(), pair(BIG, 6)
    module(x_a, x_b).backward()
    expected = module.linear.weight.grad.clone()
    module.zero_grad()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    compiled(x_a, x_b).backward()
    torch.testing.assert_close(module.linear.weight.grad, expected)


def peak_bytes(n: int, d: int) -> int:
    """Return the peak bytes of a forward and a backward pass, counted from their allocations."""
    z_a, z_b = pair(n, d)
    with profile(profile_memory=True) as profiler:
        nt_xent(z_a, z_b, 0.1).loss.backward()
    held = peak = 0
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.fixture
def no_stored_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocks, "MEMORY", {"cpu": 0})
    return


@pytest.mark.usefixtures("no_stored_blocks")
def test_memory_is_linear_in_n() -> None:
    counts = np.array([1024, 2048, 4096, 8192])
    peaks = np.array([peak_bytes(int(n), 32) for n in counts])
    exponent = np.polyfit(np.log(counts), np.log(peaks), 1)[0]
    assert exponent < 1.1
    assert np.log2(peaks[-1] / peaks[-2]) < 1.1


def test_memory_is_a_small_part_of_the_matrix() -> None:
    matrix = 4 * (2 * 4096) ** 2
    assert matrix / 1000 < peak_bytes(4096, 32) < matrix / 12


@pytest.mark.parametrize("temperature", [0, -0.1, math.nan, math.inf])
def test_a_wrong_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="above 0 and finite"):
        NTXent(temperature)
    with pytest.raises(ValueError, match="above 0 and finite"):
        nt_xent(*pair(2, 2), temperature)


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have one shape \(n, D\)"):
        nt_xent(torch.ones(3, 2), torch.ones(4, 2), 0.1)
    with pytest.raises(ValueError, match=r"must have one shape \(n, D\)"):
        nt_xent(torch.ones(3), torch.ones(3), 0.1)
    with pytest.raises(ValueError, match="floating-point"):
        nt_xent(torch.ones(3, 2, dtype=torch.int64), torch.ones(3, 2), 0.1)
    with pytest.raises(ValueError, match="no rows"):
        nt_xent(torch.ones(0, 2), torch.ones(0, 2), 0.1)


def test_the_module_is_the_function() -> None:
    z_a, z_b = pair(5, 4)
    module = NTXent(0.2)
    assert torch.equal(module(z_a, z_b).loss, nt_xent(z_a, z_b, 0.2).loss)
    assert repr(module) == "NTXent(temperature=0.2, gather=True)"
    assert not list(module.parameters())
