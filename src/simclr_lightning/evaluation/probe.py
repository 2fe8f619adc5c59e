"""Fit multinomial logistic regression to frozen features, and choose its l2 on held-out labels.

The objective is the mean cross-entropy + l2/2 * sum of squared weights, without a penalty on the bias (paper, appendix
B.8). This is scikit-learn's LogisticRegression with C = 1/(n * l2). It is convex, so the solution does not depend on
the solver. The solver is L-BFGS with preconditioning: features are centered, rotated onto their principal axes, and
each axis is scaled by its curvature. This change of variables is exact and is undone at the end, so weight and bias
belong to the original features.

Shapes: n = images, F = features, A = F + 1 principal axes with the bias last, C = classes.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_lightning.stopping import check

L2_GRID: tuple[float, ...] = tuple((10.0 ** torch.linspace(-6, 5, 45, dtype=torch.float64)).tolist())
"""The paper's 45 values of l2, logarithmically spaced from 1e-6 to 1e5."""

# Rows of features in one block. On a CPU the second matrix product then finds them in the cache; on a GPU the block
# only bounds the memory.
_CPU_ROWS, _GPU_ROWS = 4096, 65536

# Wider features are not rotated: computing their principal axes would cost more time than it saves.
_WIDEST_ROTATION = 4096


class LinearWeights(NamedTuple):
    """A linear classifier h @ weight.T + bias: weight (C, F), bias (C,)."""

    weight: Tensor
    bias: Tensor

    def predict(self, h_nF: Tensor) -> Tensor:
        """Features (n, F) -> classes (n,) int64."""
        h_nF = h_nF.to(self.weight.device, self.weight.dtype)
        return (h_nF @ self.weight.T + self.bias).argmax(1)


@dataclass(frozen=True)
class LogisticResult:
    """The classifier with the best accuracy on held-out labels.

    Attributes:
        weight: (C, F).
        bias: (C,).
        l2: the chosen regularization.
        held_out_accuracy: accuracy on the held-out part, a fraction in [0, 1].
        accuracies: the held-out accuracy of every l2 that was fitted.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    held_out_accuracy: float
    accuracies: dict[float, float]

    def predict(self, h_nF: Tensor) -> Tensor:
        """Features (n, F) -> classes (n,) int64."""
        return LinearWeights(self.weight, self.bias).predict(h_nF)


def fit_logistic(
    h_nF: Tensor,
    y_n: Tensor,
    *,
    l2: float,
    classes: int | None = None,
    max_iter: int = 1000,
    tolerance: float = 1e-5,
    start: LinearWeights | None = None,
) -> LinearWeights:
    """Fit logistic regression; return its weight (C, F) and bias (C,), on the device of the features.

    Args:
        h_nF: features of any scale; float64 is computed in float64, other types in float32.
        y_n: integer labels from 0.
        l2: the regularization, above 0.
        classes: C; None takes the largest label plus one.
        max_iter: the maximum number of L-BFGS iterations; reaching it is a RuntimeWarning.
        tolerance: the fit ends when every entry of the gradient, in the scaled coordinates, is at most this. It so
            means the same for features of any scale and for every l2. Values below 1e-6 are not reached, because
            torch's line search compares losses.
        start: weights to start from, for example the solution for a similar l2; None starts at zero.

    Raises:
        ValueError: shapes or labels do not match, a feature is not finite, or l2 is not above 0.

    Example:
        >>> h, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1])
        >>> fit_logistic(h, y, l2=0.1).predict(torch.tensor([[-3.0], [3.0]]))
        tensor([0, 1])
    """
    classes = _check(h_nF, y_n, [l2], classes)
    problem = _Problem(h_nF, y_n, classes)
    if start is not None:
        problem.begin(l2, start)
    return problem.solve(l2, max_iter=max_iter, tolerance=tolerance)


def choose_l2(
    train_h_nF: Tensor,
    train_y_n: Tensor,
    held_out_h_mF: Tensor,
    held_out_y_m: Tensor,
    *,
    l2s: Sequence[float] = L2_GRID,
    classes: int | None = None,
    max_iter: int = 1000,
    tolerance: float = 1e-5,
) -> LogisticResult:
    """Fit logistic regression for every l2; return the classifier with the best accuracy on the held-out part.

    The largest l2 is fitted first, and each fit starts at the solution before it. Of equal accuracies the largest l2
    wins. The held-out labels are used for this choice only, not for the fits.

    Args:
        train_h_nF: features to fit.
        train_y_n: their labels, integers from 0.
        held_out_h_mF: features of the m held-out images.
        held_out_y_m: their labels.
        l2s: values above 0.
        classes: C; None takes the largest training label plus one.
        max_iter: as in `fit_logistic`.
        tolerance: as in `fit_logistic`.

    Raises:
        ValueError: as in `fit_logistic`, for both parts, or ``l2s`` is empty.
    """
    classes = _check(train_h_nF, train_y_n, l2s, classes)
    _check(held_out_h_mF, held_out_y_m, l2s, classes)
    problem = _Problem(train_h_nF, train_y_n, classes)
    best: LogisticResult | None = None
    accuracies: dict[float, float] = {}
    for l2 in sorted(set(l2s), reverse=True):
        fitted = problem.solve(l2, max_iter=max_iter, tolerance=tolerance)
        accuracies[l2] = accuracy(fitted, held_out_h_mF, held_out_y_m)
        if best is None or accuracies[l2] > best.held_out_accuracy:
            best = LogisticResult(fitted.weight, fitted.bias, l2, accuracies[l2], accuracies)
    assert best is not None
    return best


def accuracy(classifier: LinearWeights | LogisticResult, h_nF: Tensor, y_n: Tensor) -> float:
    """Return the fraction in [0, 1] of rows (n, F) whose class (n,) the classifier predicts correctly."""
    predicted_n = classifier.predict(h_nF)
    return (predicted_n == y_n.to(predicted_n.device)).double().mean().item()


class _Problem:
    """Logistic regression on one data set in scaled coordinates; `solve` it for one l2 after another, largest first."""

    def __init__(self, h_nF: Tensor, y_n: Tensor, classes: int) -> None:
        self.y_n1 = y_n.to(h_nF.device, torch.int64)[:, None]
        self.classes = classes
        self.rows = _CPU_ROWS if h_nF.device.type == "cpu" else _GPU_ROWS
        dtype = torch.float64 if h_nF.dtype == torch.float64 else torch.float32
        self.mean_F = h_nF.mean(0, dtype=torch.float64).to(dtype)
        self.axes_FF = self._principal_axes(h_nF)
        # The last column is 1 for every image: its weight is the bias.
        self.x_nA = torch.ones(len(h_nF), h_nF.shape[1] + 1, dtype=dtype, device=h_nF.device)
        for x_bA, h_bF in zip(torch.split(self.x_nA, self.rows), torch.split(h_nF, self.rows), strict=True):
            x_bA[:, :-1] = (h_bF - self.mean_F) @ self.axes_FF
        self.variance_A = self.x_nA.square().mean(0)
        self.solved: list[tuple[float, Tensor]] = []
        self.softmax_curvature = self._softmax_curvature(self._start(1.0))

    def solve(self, l2: float, *, max_iter: int, tolerance: float) -> LinearWeights:
        """Return the minimizer of the objective; the search starts from the solutions for the earlier l2."""
        weight_CA, used, stale = self._start(l2), 0, True
        while stale and used < max_iter:
            before = self.softmax_curvature
            weight_CA, iterations = self._search(weight_CA, l2, max_iter - used, tolerance)
            used += iterations
            self.softmax_curvature = self._softmax_curvature(weight_CA)
            # If the curvature fell during the search, the scaled gradient was too small: search again.
            stale = bool(self.softmax_curvature < before / 3)
        if used >= max_iter:
            warnings.warn(
                f"the probe for l2 = {l2:g} stopped after {max_iter} iterations, before it reached its tolerance: "
                "raise max_iter, or leave the smallest l2 out",
                RuntimeWarning,
                stacklevel=3,
            )
        self.solved.append((math.log(l2), weight_CA))
        return self._outward(weight_CA)

    def _search(self, start_CA: Tensor, l2: float, max_iter: int, tolerance: float) -> tuple[Tensor, int]:
        """Run L-BFGS from a start; return the final weights (C, A) and the number of iterations."""
        # The Hessian is nearly diagonal, with entries mean p(1 - p) * variance + l2. Divided by their roots, all
        # directions have about the same curvature, and L-BFGS needs a few dozen evaluations.
        curvature_A = self.softmax_curvature * self.variance_A
        curvature_A[:-1] += l2
        scale_A = curvature_A.rsqrt()
        u_CA = start_CA / scale_A
        search = torch.optim.LBFGS(
            [u_CA],
            max_iter=max_iter,
            max_eval=2 * max_iter,
            tolerance_grad=tolerance,
            tolerance_change=1e-12,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            check()
            loss, gradient_CA = self.evaluate(u_CA * scale_A, l2)
            u_CA.grad = gradient_CA.mul_(scale_A)
            return loss.item()

        search.step(closure)
        # L-BFGS has no counter in its state if the start was already the solution.
        return u_CA * scale_A, int(search.state[u_CA].get("n_iter", 0))

    def evaluate(self, weight_CA: Tensor, l2: float) -> tuple[Tensor, Tensor]:
        """Return the objective () float64 and its gradient (C, A), in one pass over the features."""
        loss = torch.zeros((), dtype=torch.float64, device=weight_CA.device)
        gradient_CA = torch.zeros_like(weight_CA)
        for x_bA, y_b1 in zip(torch.split(self.x_nA, self.rows), torch.split(self.y_n1, self.rows), strict=True):
            log_p_bC = torch.log_softmax(x_bA @ weight_CA.T, 1)
            loss -= log_p_bC.gather(1, y_b1).sum(dtype=torch.float64)
            residual_bC = log_p_bC.exp_()  # p, then p - 1 at the label
            residual_bC.scatter_add_(1, y_b1, residual_bC.new_full(y_b1.shape, -1))
            gradient_CA.addmm_(residual_bC.T, x_bA)
        penalized = weight_CA[:, :-1]
        loss = loss / len(self.x_nA) + l2 / 2 * penalized.double().square().sum()
        gradient_CA /= len(self.x_nA)
        gradient_CA[:, :-1] += l2 * penalized
        return loss, gradient_CA

    def begin(self, l2: float, given: LinearWeights) -> None:
        """Register weights in the original coordinates as the solution for this l2."""
        weight_CF, bias_C = (part.to(self.x_nA) for part in given)
        weight_CA = torch.cat([weight_CF @ self.axes_FF, (bias_C + weight_CF @ self.mean_F)[:, None]], 1)
        self.solved.append((math.log(l2), weight_CA))
        self.softmax_curvature = self._softmax_curvature(weight_CA)

    def _outward(self, weight_CA: Tensor) -> LinearWeights:
        weight_CF = weight_CA[:, :-1] @ self.axes_FF.T
        return LinearWeights(weight_CF, weight_CA[:, -1] - weight_CF @ self.mean_F)

    def _start(self, l2: float) -> Tensor:
        """Return start weights (C, A): the last two solutions extrapolated linearly in log l2."""
        if not self.solved:
            return self.x_nA.new_zeros(self.classes, self.x_nA.shape[1])
        at, weight_CA = self.solved[-1]
        if len(self.solved) == 1:
            return weight_CA
        before, earlier_CA = self.solved[-2]
        return weight_CA + (weight_CA - earlier_CA) * ((math.log(l2) - at) / (at - before))

    def _softmax_curvature(self, weight_CA: Tensor) -> Tensor:
        """Return the mean of p(1 - p) over images and classes, (): the curvature of the softmax at these weights."""
        total = self.x_nA.new_zeros(())
        for x_bA in torch.split(self.x_nA, self.rows):
            p_bC = torch.softmax(x_bA @ weight_CA.T, 1)
            total += (p_bC * (1 - p_bC)).sum()
        return (total / (len(self.x_nA) * self.classes)).clamp(min=1e-8)

    def _principal_axes(self, h_nF: Tensor) -> Tensor:
        """Return orthonormal columns (F, F) on which the centered features are uncorrelated."""
        width = h_nF.shape[1]
        if width > _WIDEST_ROTATION:
            return torch.eye(width, dtype=self.mean_F.dtype, device=h_nF.device)
        covariance_FF = torch.zeros(width, width, dtype=torch.float64, device=h_nF.device)
        for h_bF in torch.split(h_nF, _GPU_ROWS):
            centered_bF = h_bF - self.mean_F
            covariance_FF += centered_bF.T @ centered_bF
        _, axes_FF = torch.linalg.eigh(covariance_FF)
        return torch.as_tensor(axes_FF, dtype=self.mean_F.dtype)


def _check(h_nF: Tensor, y_n: Tensor, l2s: Sequence[float], classes: int | None) -> int:
    if h_nF.ndim != 2 or y_n.shape != h_nF.shape[:1] or len(y_n) == 0:
        raise ValueError(
            f"features {tuple(h_nF.shape)} and labels {tuple(y_n.shape)} must be (n, F) and (n,), with n at least 1"
        )
    if not l2s or not all(l2 > 0 for l2 in l2s):
        raise ValueError(f"l2 must be above 0, so that the probe has one solution: got {list(l2s)}")
    if not torch.isfinite(h_nF).all():
        raise ValueError("the features hold NaN or infinity, so a probe cannot be fitted to them")
    lowest, highest = (int(x) for x in y_n.aminmax())
    classes = highest + 1 if classes is None else classes
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got labels from {lowest} to {highest}")
    return classes
