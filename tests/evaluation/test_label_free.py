import math

import numpy as np
import pytest
import torch

from simclr_lightning.evaluation import (
    alignment,
    effective_rank,
    neighbour_agreement,
    rankme,
    score_views,
    uniformity,
)
from simclr_lightning.selection import LABEL_FREE


def with_singular_values(values: list[float], rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(width, len(values), generator=generator, dtype=torch.float64))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(("rows", "width"), [(40, 12), (12, 40), (12, 12)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_effective_rank_is_exp_of_the_entropy_of_the_singular_values(rows: int, width: int, scale: float) -> None:
    values = [8.0, 4.0, 2.0, 1.0, 1.0]
    expected = math.exp(-sum(v / 16 * math.log(v / 16) for v in values))
    h = with_singular_values(values, rows, width) * scale
    assert effective_rank(h) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_counts_equal_directions_and_is_one_for_collapsed_features() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(with_singular_values([3.0] * 5, 30, 9)) == pytest.approx(5, rel=1e-5)
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.randn(50, 1) * torch.randn(1, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(5, 3)) == 0.0


def test_effective_rank_equals_its_definition_in_float32() -> None:
    h = torch.rand(300, 64, generator=torch.Generator().manual_seed(1))
    share = np.linalg.svd(h.double().numpy(), compute_uv=False)
    share /= share.sum()
    assert effective_rank(h) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        effective_rank(torch.zeros(3))
    with pytest.raises(ValueError, match="shape"):
        effective_rank(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="finite"):
        effective_rank(torch.tensor([[1.0, float("nan")]]))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def random_views(n: int, width: int, *, noise: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(n, width, generator=generator)
    return a, 3 * (a + noise * torch.randn(n, width, generator=generator))


def test_rankme_is_the_papers_formula() -> None:
    z = with_singular_values([6.0, 3.0, 1.0], 40, 12)
    for epsilon in (1e-7, 0.01):
        p = np.array([0.6, 0.3, 0.1] + [0.0] * 9) + epsilon
        assert rankme(z, epsilon=epsilon) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)
    z = torch.randn(300, 64, generator=torch.Generator().manual_seed(1))
    p = np.linalg.svd(z.numpy(), compute_uv=False)
    p = p / p.sum() + 1e-7
    assert rankme(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert rankme(torch.ones(50, 8)) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.zeros(5, 3)) < 1.001


def test_alignment_of_known_angles() -> None:
    a = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 1.0], [0.0, 1.0], [-7.0, 0.0]])  # at 90, 0 and 180 degrees: 2, 0 and 4
    assert alignment(a, b) == pytest.approx(2.0, rel=1e-6)
    assert alignment(a, 10 * a) == pytest.approx(0, abs=1e-12)


def test_uniformity_of_known_spreads() -> None:
    assert uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8)
    assert uniformity(torch.eye(6)) == pytest.approx(-4)  # all pairs at right angles: distance squared 2
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert uniformity(square) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))


def test_uniformity_and_alignment_equal_naive_sums() -> None:
    a, b = random_views(60, 7)
    u, v = unit(a.double().numpy()), unit(b.double().numpy())
    pairs = [np.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i in range(60) for j in range(i)]
    assert uniformity(a) == pytest.approx(np.log(np.mean(pairs)), rel=1e-6)
    assert alignment(a, b) == pytest.approx(((u - v) ** 2).sum(1).mean(), rel=1e-6)


def test_neighbour_agreement_equals_sets_found_one_by_one() -> None:
    a, b = random_views(50, 6)
    u, v = unit(a.double().numpy()), unit(b.double().numpy())
    shares = []
    for i in range(50):
        near = []
        for w in (u, v):
            order = [int(j) for j in np.argsort(-(w @ w[i])) if j != i]
            near.append(set(order[:5]))
        shares.append(len(near[0] & near[1]) / 5)
    assert 0.1 < np.mean(shares) < 0.9
    assert neighbour_agreement(a, b, 5) == pytest.approx(np.mean(shares))


def test_neighbour_agreement_of_equal_and_unrelated_views() -> None:
    a, _ = random_views(400, 16)
    assert neighbour_agreement(a, 5 * a, 20) == 1
    other = torch.randn(400, 16, generator=torch.Generator().manual_seed(8))
    assert neighbour_agreement(a, other, 20) == pytest.approx(20 / 399, abs=0.01)
    assert neighbour_agreement(a, other, 399) == 1  # everyone is a neighbour


def test_score_views_computes_every_score_from_its_own_features() -> None:
    h_a, h_b = random_views(129, 24)
    z_a, z_b = random_views(129, 10, noise=0.3)
    found = score_views(h_a, h_b, z_a, z_b, temperature=0.5, k=7)
    assert found.keys() == LABEL_FREE.keys()
    # In parts of 65 and 64 images, none of which lacks negatives, by the definition, in float64 (paper, algorithm 1).
    losses, right = [], []
    for rows in (slice(0, 65), slice(65, 129)):
        u, v = unit(z_a[rows].double().numpy()), unit(z_b[rows].double().numpy())
        n, both = len(u), np.concatenate((u, v))
        s = both @ both.T / 0.5
        np.fill_diagonal(s, -np.inf)
        positive = np.concatenate((np.arange(n, 2 * n), np.arange(n)))
        losses += list(np.log(np.exp(s).sum(1)) - s[np.arange(2 * n), positive])
        right += [*((u @ v.T).argmax(1) == np.arange(n)), *((v @ u.T).argmax(1) == np.arange(n))]
    assert found["held_out_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["contrastive_accuracy"] == pytest.approx(np.mean(right), rel=1e-5)
    assert found["rankme"] == rankme(z_a)
    assert found["effective_rank"] == effective_rank(h_a)
    assert found["alignment"] == alignment(z_a, z_b)
    assert found["uniformity"] == pytest.approx((uniformity(z_a) + uniformity(z_b)) / 2)
    assert found["neighbour_agreement"] == neighbour_agreement(h_a, h_b, 7)


def test_without_a_temperature_only_the_held_out_loss_is_left_out() -> None:
    views = (*random_views(40, 24), *random_views(40, 10, noise=0.3))
    found = score_views(*views, temperature=0.1)
    assert found.pop("held_out_loss") > 0
    assert score_views(*views, temperature=None) == found


def test_few_images_give_the_scores_that_exist() -> None:
    h, z = torch.eye(3), torch.rand(3, 4)
    assert score_views(h, h, z, z, temperature=0.5).keys() == LABEL_FREE.keys()
    assert "neighbour_agreement" not in score_views(h[:2], h[:2], z[:2], z[:2], temperature=0.5)
    assert "uniformity" not in score_views(h[:1], h[:1], z[:1], z[:1], temperature=0.5)


def test_wrong_use_of_the_pairwise_scores_is_refused() -> None:
    a, bad = torch.rand(4, 3), torch.full((4, 3), math.inf)
    for score in (alignment, neighbour_agreement):
        with pytest.raises(ValueError, match="same images"):
            score(a, torch.rand(5, 3))
        with pytest.raises(ValueError, match="finite"):
            score(a, bad)
    with pytest.raises(ValueError, match="finite"):
        uniformity(bad)
    with pytest.raises(ValueError, match="at least 2"):
        uniformity(a[:1])
    with pytest.raises(ValueError, match="k = 4"):
        neighbour_agreement(a, a, 4)
