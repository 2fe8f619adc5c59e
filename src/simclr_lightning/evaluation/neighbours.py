"""Exact nearest neighbours by cosine, in blocks that bound the memory.

Shapes: m = queries, n = bank rows, F = features, k = neighbours, q = queries in a block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# A block of similarities holds 64 MB in float32: enough for the full speed of the matrix product, little
# enough for a small machine.
_BLOCK_ROWS, _BLOCK_COLUMNS = 512, 32768


def nearest(queries_mF: Tensor, bank_nF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k bank rows with the largest cosine to each query: similarities (m, k), indices (m, k) int64.

    Most similar first. Rows may have any norm; a zero row has cosine 0 to everything. Computed where the
    bank lies, in the bank's floating type (half types in float32), exactly: no index structure.

    Raises:
        ValueError: k is below 1 or above n, the widths differ, or a feature is not finite.
    """
    _check(queries_mF, bank_nF, k)
    bank_nF = unit_rows(bank_nF)
    queries_mF = unit_rows(queries_mF.to(bank_nF.device)).to(bank_nF.dtype)
    found = [_nearest_of_block(block_qF, bank_nF, k) for block_qF in torch.split(queries_mF, _BLOCK_ROWS)]
    return torch.cat([similarities for similarities, _ in found]), torch.cat([i for _, i in found])


def unit_rows(h_nF: Tensor) -> Tensor:
    """Rows (n, F) divided by their norms, in float32 or float64; a zero row stays zero."""
    h_nF = h_nF if h_nF.dtype == torch.float64 else h_nF.float()
    return F.normalize(h_nF, dim=1, eps=1e-12)


def _nearest_of_block(block_qF: Tensor, bank_nF: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
            f"queries {tuple(queries_mF.shape)} and bank {tuple(bank_nF.shape)} must be two tables with the "
            "same number of features"
        )
    if not 1 <= k <= len(bank_nF):
        raise ValueError(f"k = {k} neighbours asked of a bank of {len(bank_nF)}: take k from 1 to its size")
    for name, table in (("queries", queries_mF), ("bank", bank_nF)):
        if not torch.isfinite(table).all():
            raise ValueError(f"the {name} hold features that are not finite: nothing is near to NaN")
