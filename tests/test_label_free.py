import math

import numpy as np
import pytest
import torch

from simclr_lightning.evaluation import effective_rank


def with_singular_values(values: list[float], rows: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(width, len(values), generator=generator, dtype=torch.float64))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


@pytest.mark.parametrize(("rows", "width"), [(40, 12), (12, 40), (12, 12)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_is_the_exponential_of_the_entropy_of_the_singular_values(rows: int, width: int, scale: float) -> None:
    values = [8.0, 4.0, 2.0, 1.0, 1.0]
    expected = math.exp(-sum(v / 16 * math.log(v / 16) for v in values))
    h = with_singular_values(values, rows, width) * scale
    assert effective_rank(h) == pytest.approx(expected, rel=1e-6)


def test_alike_directions_count_fully_and_a_collapsed_table_is_one() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(with_singular_values([3.0] * 5, 30, 9)) == pytest.approx(5, rel=1e-5)
    assert effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.randn(50, 1) * torch.randn(1, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(5, 3)) == 0.0


def test_equals_the_definition_on_random_features_in_float32() -> None:
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
