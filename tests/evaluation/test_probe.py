import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from simclr_lightning.evaluation import L2_GRID, LinearWeights, accuracy, choose_l2, fit_logistic, probe


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These problems are so small that on a busy machine threads cost ten times the time that they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def digits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real images of handwritten digits, 64 raw pixels of 0 to 16, some of them constant: badly scaled."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    h, labels = torch.from_numpy(x[order]).to(dtype), torch.from_numpy(y[order]).long()
    return h[:1200], labels[:1200], h[1200:], labels[1200:]


def overlapping(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positive features with a large mean and scales from 1e-2 to 1e1, like h after ReLU and pooling."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(5, (3000,), generator=generator)
    x = torch.randn(3000, 40, generator=generator) + 0.5 * torch.randn(5, 40, generator=generator)[y]
    mix = torch.randn(40, 40, generator=generator) / 40**0.5
    h = (3 + x @ mix).relu() * torch.logspace(-2, 1, 40)
    return h[:2000].to(dtype), y[:2000], h[2000:].to(dtype), y[2000:]


def peer(h: Tensor, y: Tensor, l2: float) -> LogisticRegression:
    """scikit-learn's solution in float64 by Newton's method: it does not depend on a tolerance of L-BFGS."""
    solver = LogisticRegression(C=1 / (len(h) * l2), solver="newton-cholesky", tol=1e-10, max_iter=1000)
    return solver.fit(h.double().numpy(), y.numpy())


def naive_gradient(h: Tensor, y: Tensor, fitted: LinearWeights, l2: float) -> tuple[float, Tensor, Tensor]:
    """The objective and its gradient by autograd in float64, from the formula."""
    weight = fitted.weight.double().requires_grad_()
    bias = fitted.bias.double().requires_grad_()
    p = torch.exp(h.double() @ weight.T + bias)
    p = p / p.sum(1, keepdim=True)
    loss = -p[torch.arange(len(y)), y].log().mean() + l2 / 2 * (weight**2).sum()
    loss.backward()
    return loss.item(), weight.grad, bias.grad


@pytest.mark.parametrize("l2", [1e-4, 1e-3, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("data", [digits, overlapping])
def test_equals_scikit_learn(data, l2: float) -> None:
    h, y, test_h, test_y = data()
    ours, theirs = fit_logistic(h, y, l2=l2), peer(h, y, l2)
    assert ours.weight.dtype == torch.float32
    everything = torch.cat([h, test_h])
    same = ours.predict(everything).numpy() == theirs.predict(everything.double().numpy())
    assert same.mean() >= 0.999
    score = theirs.score(test_h.double().numpy(), test_y.numpy())
    assert accuracy(ours, test_h, test_y) == pytest.approx(score, abs=1e-3)


def test_equals_the_lbfgs_of_scikit_learn() -> None:
    h, y, test_h, _ = overlapping(torch.float64)
    theirs = LogisticRegression(C=1 / (len(h) * 1e-2), tol=1e-10, max_iter=20000).fit(h.numpy(), y.numpy())
    ours = fit_logistic(h, y, l2=1e-2, tolerance=1e-7)
    difference = (ours.weight - torch.from_numpy(theirs.coef_)).abs().max()
    assert difference < 1e-5 * np.abs(theirs.coef_).max()
    assert np.array_equal(ours.predict(test_h).numpy(), theirs.predict(test_h.numpy()))


@pytest.mark.parametrize("l2", [1e-5, 1e-2, 10.0])
def test_the_gradient_of_the_formula_is_zero_at_the_solution(l2: float) -> None:
    h, y, _, _ = overlapping(torch.float64)
    fitted = fit_logistic(h, y, l2=l2, tolerance=1e-6)
    _, weight, bias = naive_gradient(h, y, fitted, l2)
    assert weight.abs().max() < 2e-5
    assert bias.abs().max() < 1e-6


@pytest.mark.parametrize("l2", [1e-5, 1e-3, 1.0])
def test_float32_reaches_the_loss_of_newtons_method(l2: float) -> None:
    h, y, _, _ = digits()
    theirs = peer(h, y, l2)
    lowest, _, _ = naive_gradient(h, y, LinearWeights(*map(torch.from_numpy, (theirs.coef_, theirs.intercept_))), l2)
    ours, _, _ = naive_gradient(h, y, fit_logistic(h, y, l2=l2), l2)
    assert -1e-9 < ours - lowest < 1e-6


def test_l2_penalizes_the_weights_and_not_the_bias() -> None:
    h, y, _, _ = overlapping(torch.float64)
    counts = torch.bincount(y[y != 3][:700] % 5).double()
    keep = torch.arange(len(y))[y != 3][:700]
    fitted = fit_logistic(h[keep], y[keep], l2=1e9, tolerance=1e-6)
    assert fitted.weight.abs().max() < 1e-7
    # Without weights the best bias gives the class frequencies; class 3 has no image and must never win.
    present = counts > 0
    expected = (counts[present] / counts.sum()).log()
    got = torch.log_softmax(fitted.bias, 0)[present]
    torch.testing.assert_close(got - got.mean(), expected - expected.mean(), atol=1e-4, rtol=0)
    assert fitted.bias.argmin() == 3


def test_a_shift_and_a_constant_feature_change_nothing() -> None:
    h, y, test_h, _ = overlapping(torch.float64)

    def disguised(x: Tensor) -> Tensor:
        return torch.cat([x + 50, torch.full_like(x[:, :2], 7.0), torch.zeros_like(x[:, :1])], 1)

    plain = fit_logistic(h, y, l2=1e-3, tolerance=1e-6)
    other = fit_logistic(disguised(h), y, l2=1e-3, tolerance=1e-6)
    torch.testing.assert_close(other.weight[:, :40], plain.weight, atol=1e-5, rtol=1e-5)
    assert other.weight[:, 40:].abs().max() < 1e-6
    assert torch.equal(other.predict(disguised(test_h)), plain.predict(test_h))


@pytest.mark.parametrize("attribute", ["_WIDEST_ROTATION", "_CPU_ROWS"])
def test_blocks_and_features_that_are_not_rotated_give_the_same_solution(
    monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    h, y, _, _ = overlapping(torch.float64)
    expected = fit_logistic(h, y, l2=1e-3, tolerance=1e-6)
    monkeypatch.setattr(probe, attribute, 39)
    got = fit_logistic(h, y, l2=1e-3, tolerance=1e-6)
    torch.testing.assert_close(got.weight, expected.weight, atol=2e-4, rtol=0)
    torch.testing.assert_close(got.bias, expected.bias, atol=2e-3, rtol=0)


def test_the_start_does_not_change_the_solution() -> None:
    h, y, _, _ = overlapping(torch.float64)
    cold = fit_logistic(h, y, l2=1e-3, tolerance=1e-6)
    warm = fit_logistic(h, y, l2=1e-3, tolerance=1e-6, start=fit_logistic(h, y, l2=1e-2))
    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-4, rtol=1e-4)
    # At the solution there is nothing left to do: an iteration, the only one allowed, would warn.
    again = fit_logistic(h, y, l2=1e-3, start=cold, max_iter=1)
    torch.testing.assert_close(again.weight, cold.weight, atol=1e-8, rtol=1e-8)


def test_the_grid_is_the_papers() -> None:
    np.testing.assert_allclose(L2_GRID, np.logspace(-6, 5, 45), rtol=1e-12)


def test_the_sweep_equals_separate_cold_fits_and_takes_the_best_on_held_out() -> None:
    h, y, held_h, held_y = overlapping()
    h, y = h[:300], y[:300]  # few images: regularization matters
    result = choose_l2(h, y, held_h, held_y)
    assert list(result.accuracies) == sorted(L2_GRID, reverse=True)
    for l2 in L2_GRID[4::5]:
        cold = accuracy(fit_logistic(h, y, l2=l2), held_h, held_y)
        assert result.accuracies[l2] == pytest.approx(cold, abs=2e-3), l2
    best = max(result.accuracies.values())
    assert result.held_out_accuracy == best == result.accuracies[result.l2]
    assert result.l2 == max(l2 for l2, score in result.accuracies.items() if score == best)
    assert min(L2_GRID) < result.l2 < max(L2_GRID)
    assert accuracy(result, held_h, held_y) == best
    assert best > result.accuracies[min(L2_GRID)] + 0.02


def test_held_out_labels_are_not_trained_on() -> None:
    h, y, held_h, held_y = digits()
    right = choose_l2(h, y, held_h, held_y, l2s=[1e-2])
    wrong = choose_l2(h, y, held_h, (held_y + 1) % 10, l2s=[1e-2])
    assert torch.equal(right.weight, wrong.weight)
    assert right.held_out_accuracy > 0.9
    assert wrong.held_out_accuracy < 0.1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_inside_an_evaluation_loop(mode) -> None:
    h, y, _, _ = digits()
    with mode():
        inside = fit_logistic(h.clone(), y, l2=1e-2)
    torch.testing.assert_close(inside.weight, fit_logistic(h, y, l2=1e-2).weight)


def test_separable_classes_and_a_single_class_are_fitted() -> None:
    h = torch.cat([torch.eye(3)] * 20) * 10
    y = torch.arange(3).repeat(20)
    result = choose_l2(h, y, h, y)
    assert result.held_out_accuracy == 1.0
    perfect = [l2 for l2, score in result.accuracies.items() if score == 1.0]
    assert len(perfect) > 1
    assert result.l2 == max(perfect)  # of equal accuracies, the largest l2
    assert torch.isfinite(result.weight).all()
    assert fit_logistic(h, y * 0, l2=1e-3).predict(h).tolist() == [0] * 60
    collapsed = choose_l2(torch.ones(60, 4), y, torch.ones(60, 4), y)
    assert collapsed.held_out_accuracy == pytest.approx(1 / 3)


def test_stopping_early_warns() -> None:
    h, y, _, _ = digits()
    with pytest.warns(RuntimeWarning, match="after 2 iterations"):
        fit_logistic(h, y, l2=1e-5, max_iter=2)


def test_wrong_use_is_refused() -> None:
    h, y, held_h, held_y = digits()
    for l2 in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="l2 must be above 0"):
            fit_logistic(h, y, l2=l2)
    with pytest.raises(ValueError, match="l2 must be above 0"):
        choose_l2(h, y, held_h, held_y, l2s=[])
    with pytest.raises(ValueError, match=r"labels \(1199,\) must be"):
        fit_logistic(h, y[:-1], l2=1.0)
    with pytest.raises(ValueError, match="0 to 8"):
        fit_logistic(h, y, l2=1.0, classes=9)
    with pytest.raises(ValueError, match="0 to 9"):
        choose_l2(h, y, held_h, held_y + 1, l2s=[1.0])
    with pytest.raises(ValueError, match="NaN"):
        fit_logistic(h / 0, y, l2=1.0)
