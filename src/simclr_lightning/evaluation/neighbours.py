"""Find exact nearest neighbors by cosine, in blocks that bound the memory.

Shapes: m = queries, n = rows of the bank, F = features, k = neighbors, q = queries of one block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_lightning.stopping import check

# One block of similarities takes 64 MB in float32: large enough for the full speed of the matrix product.
_BLOCK_ROWS, _BLOCK_COLUMNS = 512, 32768


def nearest(queries_mF: Tensor, bank_nF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k rows of the bank with the largest cosine to each query, most similar first.

    The search is exact. It runs on the bank's device, in float64 for a float64 bank and in float32 for all others.

    Args:
        queries_mF: any norm; a zero row has cosine 0 to every row.
        bank_nF: any norm.
        k: from 1 to n.

    Returns:
        Cosines (m, k) and row numbers (m, k) int64.

    Raises:
        ValueError: k is out of range, the numbers of features differ, or a feature is not finite.

    Example:
        >>> nearest(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]), k=2)
        (tensor([[1., 0.]]), tensor([[1, 0]]))
    """
    _check(queries_mF, bank_nF, k)
    bank_nF = unit_rows(bank_nF)
    queries_mF = unit_rows(queries_mF.to(bank_nF.device)).to(bank_nF.dtype)
    found = [_nearest_of_block(block_qF, bank_nF, k) for block_qF in torch.split(queries_mF, _BLOCK_ROWS)]
    return torch.cat([similarities for similarities, _ in found]), torch.cat([i for _, i in found])


def unit_rows(h_nF: Tensor) -> Tensor:
    """Return rows (n, F) divided by their L2 norms, float64 for float64 and float32 for others; zero rows stay zero."""
    h_nF = h_nF if h_nF.dtype == torch.float64 else h_nF.float()
    return F.normalize(h_nF, dim=1, eps=1e-12)


def _nearest_of_block(block_qF: Tensor, bank_nF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    check()
    best_qk: Tensor | None = None
    index_qk: Tensor | None = None
    for start in range(0, len(bank_nF), _BLOCK_COLUMNS):
        part_cF = bank_nF[start : start + _BLOCK_COLUMNS]
        values, index = (block_qF @ part_cF.T).topk(min(k, len(part_cF)), dim=1)
        index = index + start
        if best_qk is not None and index_qk is not None:
            values, index = torch.cat([best_qk, values], 1), torch.cat([index_qk, index], 1)
            values, order = values.topk(min(k, values.shape[1]), dim=1)
            index = index.gather(1, order)
        best_qk, index_qk = values, index
    assert best_qk is not None
    assert index_qk is not None
    return best_qk, index_qk


def _check(queries_mF: Tensor, bank_nF: Tensor, k: int) -> None:
    if queries_mF.ndim != 2 or bank_nF.ndim != 2 or queries_mF.shape[1] != bank_nF.shape[1]:
        raise ValueError(
            f"queries {tuple(queries_mF.shape)} and bank {tuple(bank_nF.shape)} must be two-dimensional, with the "
            "same number of features"
        )
    if not 1 <= k <= len(bank_nF):
        raise ValueError(f"k = {k} neighbors of a bank of {len(bank_nF)} rows: choose k from 1 to the number of rows")
    for name, table in (("queries", queries_mF), ("bank", bank_nF)):
        if not torch.isfinite(table).all():
            raise ValueError(f"the features of the {name} must be finite: these hold NaN or infinity")
