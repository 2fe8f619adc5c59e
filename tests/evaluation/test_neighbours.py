import numpy as np
import pytest
import torch
from torch import Tensor

from simclr_lightning.evaluation import nearest, neighbours


def table(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(rows, 1, generator=generator, dtype=torch.float64) * 10 + 0.1
    return (torch.randn(rows, width, generator=generator, dtype=torch.float64) * norms).to(dtype)


def naive(queries: Tensor, bank: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    q, b = queries.double().numpy(), bank.double().numpy()
    cosine = np.array([[x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for y in b] for x in q])
    index = np.argsort(-cosine, axis=1)[:, :k]
    return np.take_along_axis(cosine, index, 1), index


@pytest.mark.parametrize("blocks", [(512, 32768), (7, 13), (1, 1), (100, 4)])
@pytest.mark.parametrize("k", [1, 5, 90])
def test_the_nearest_are_those_of_the_whole_cosine_table(
    monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int], k: int
) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", blocks[0])
    monkeypatch.setattr(neighbours, "_BLOCK_COLUMNS", blocks[1])
    queries, bank = table(40, 9, 0), table(90, 9, 1)
    similarity, index = nearest(queries, bank, k)
    expected, expected_index = naive(queries, bank, k)
    assert index.dtype == torch.int64
    assert np.array_equal(index.numpy(), expected_index)
    np.testing.assert_allclose(similarity.numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_types_are_compared_in_float32(dtype: torch.dtype) -> None:
    queries, bank = table(20, 16, 2, dtype), table(50, 16, 3, dtype)
    similarity, index = nearest(queries, bank, 4)
    expected, expected_index = naive(queries, bank, 4)
    assert similarity.dtype == torch.float32
    np.testing.assert_allclose(similarity.numpy(), expected, atol=1e-6)
    assert (index.numpy() == expected_index).mean() > 0.99


def test_a_zero_row_has_cosine_zero_to_everything() -> None:
    similarity, index = nearest(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [-1.0, 0.0]]), 2)
    assert similarity[0].tolist() == [0.0, 0.0]
    assert similarity[1].tolist() == [0.0, -1.0]
    assert index[1].tolist() == [0, 1]


def test_no_queries_give_empty_tables() -> None:
    similarity, index = nearest(torch.zeros(0, 3), torch.ones(4, 3), 2)
    assert similarity.shape == index.shape == (0, 2)


def test_wrong_use_is_refused() -> None:
    bank = table(5, 3, 0)
    for k in (0, 6):
        with pytest.raises(ValueError, match="bank of 5"):
            nearest(bank, bank, k)
    with pytest.raises(ValueError, match="same number of features"):
        nearest(table(5, 4, 0), bank, 1)
    for value in (float("nan"), float("inf")):
        broken = bank.clone()
        broken[2, 1] = value
        with pytest.raises(ValueError, match="the queries"):
            nearest(broken, bank, 1)
        with pytest.raises(ValueError, match="the bank"):
            nearest(bank, broken, 1)
