"""Find near-duplicate images by the cosine of h, and nearest neighbors in sets that are larger than the memory.

`near_duplicates` and `exact` compare every pair. `faiss_index` (extra ``faiss``) stores one byte per feature and
searches a part of the set; the cosines of the rows that it finds are computed again from the exact h.

Shapes: m = queries, n = images, F = features, k = neighbors, p = pairs, c = candidates of a query.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simclr_lightning.evaluation.neighbours import nearest, unit_rows
from simclr_lightning.extras import require

_BLOCK, _COLUMNS = 2048, 16_384  # rows and columns of one block of similarities: 128 MB
_ROUNDING = 1e-6  # error of a cosine in float32: equal images must reach a threshold of 1
_ROWS_AT_ONCE = 65_536  # rows of the bank that are added to an index at a time
_SMALLEST_PARTED = 40_000  # from this number of images on, an index has inverted lists
_PARTNERS = 32  # neighbors of an image, itself included, that are requested from an index to form pairs

Finder = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Maps queries (m, F) and k to cosines (m, k) and row numbers (m, k) int64, like `nearest` with a fixed bank."""


class Pairs(NamedTuple):
    """Pairs of similar images, most similar first.

    Attributes:
        first: row numbers (p,) int64.
        second: row numbers (p,) int64, larger than ``first``.
        similarity: cosines (p,) float32.
        total: the number of pairs found; above p if only the most similar pairs were kept.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor
    total: int


def near_duplicates(h_nF: Tensor, threshold: float, *, most: int = 100_000) -> Pairs:
    """Return all pairs of rows whose cosine is at least the threshold; exact, in blocks that bound the memory.

    Args:
        h_nF: any norm; a zero row has cosine 0 to every row.
        threshold: in (0, 1]; equal rows reach 1, because a rounding error of 1e-6 is allowed.
        most: the maximum number of pairs to return, the most similar ones.

    Raises:
        ValueError: the threshold is out of range, there are fewer than two rows, or a feature is not finite.

    Example:
        >>> near_duplicates(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), 0.9)[:2]
        (tensor([0]), tensor([2]))
    """
    _check(h_nF, threshold)
    unit_nF = unit_rows(h_nF)
    top = _TopPairs(most)
    for start in range(0, len(unit_nF), _BLOCK):
        for column in range(start, len(unit_nF), _COLUMNS):
            similarity = unit_nF[start : start + _BLOCK] @ unit_nF[column : column + _COLUMNS].T
            alike = (similarity >= threshold - _ROUNDING).triu(start - column + 1)  # each pair once
            first, second = alike.nonzero(as_tuple=True)
            top.add(first + start, second + column, similarity[first, second])
    return top.pairs()


def near_duplicates_by(find: Finder, h_nF: Tensor, threshold: float, *, most: int = 100_000) -> Pairs:
    """Return near-duplicate pairs among the 31 nearest images of each image, for sets that are larger than the memory.

    Args:
        find: a search in ``h_nF``, such as `faiss_index` returns.
        h_nF: as in `near_duplicates`; it may be memory-mapped, and is read one block at a time.
        threshold: in (0, 1].
        most: the maximum number of pairs to return, the most similar ones.

    Raises:
        ValueError: as in `near_duplicates`; only the first two rows are checked for finite features.
    """
    _check(h_nF[:2], threshold)
    top = _TopPairs(most)
    for start in range(0, len(h_nF), _BLOCK):
        similarity, index = find(h_nF[start : start + _BLOCK], min(_PARTNERS, len(h_nF)))
        row = torch.arange(start, start + len(index))[:, None].expand_as(index)
        # A pair is found as (i, j), as (j, i), or as both; `_TopPairs` removes the second one.
        chosen = (similarity >= threshold - _ROUNDING) & (row != index)
        low, high = torch.minimum(row, index)[chosen], torch.maximum(row, index)[chosen]
        top.add(low, high, similarity[chosen])
    return top.pairs()


def groups(pairs: Pairs, count: int) -> Tensor:
    """Return the group of each image, (count,) int64: images that pairs connect are in one group.

    Group 0 is the largest; groups of equal size are in the order of their first images. An image without a pair has
    group -1.

    Args:
        pairs: of images 0 to count - 1.
        count: number of images.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = torch.ones(len(pairs.first), dtype=torch.int8)
    graph = coo_array((ones.numpy(), (pairs.first.numpy(), pairs.second.numpy())), shape=(count, count))
    _, found = connected_components(graph, directed=False)
    component = torch.as_tensor(found, dtype=torch.int64)
    size = component.bincount()
    seen = torch.full_like(size, count).scatter_reduce_(0, component, torch.arange(count), "amin")
    order = sorted((c for c in range(len(size)) if size[c] > 1), key=lambda c: (-int(size[c]), int(seen[c])))
    number = torch.full_like(size, -1)
    number[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
    return number[component]


def exact(bank_nF: Tensor) -> Finder:
    """Return a `Finder` that searches a bank (n, F) exactly with `nearest`."""
    return lambda queries_mF, k: nearest(queries_mF, bank_nF, k)


def faiss_index(bank_nF: Tensor) -> Finder:
    """Return an approximate `Finder` for a bank (n, F) that does not fit into memory.

    The index stores 8 bits per feature. From 40,000 images on it has 4 sqrt(n) inverted lists, and a query searches one
    sixteenth of them. It may miss neighbors; the cosines of the rows that it finds are exact. The bank may be
    memory-mapped: it is read one part at a time.

    Raises:
        ValueError: FAISS is not installed.
    """
    require("faiss", "an index for large sets")
    import faiss

    n, width = bank_nF.shape
    lists = int(4 * n**0.5)
    kind = f"IVF{lists},SQ8" if n >= _SMALLEST_PARTED else "SQ8"
    index: Any = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    sample = bank_nF[:: max(1, n // max(64 * lists, 10_000))]
    index.train(unit_rows(sample).numpy())
    for part in bank_nF.split(_ROWS_AT_ONCE):
        index.add(unit_rows(part).numpy())
    if n >= _SMALLEST_PARTED:
        index.nprobe = max(8, lists // 16)
    return lambda queries_mF, k: _rescored(index, unit_rows(queries_mF), bank_nF, k)


def _rescored(index: Any, queries_mF: Tensor, bank_nF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of about 2k candidates from the index, sorted by their exact cosines."""
    _, found = index.search(queries_mF.numpy(), min(2 * k + 8, len(bank_nF)))
    index_mc = torch.from_numpy(found)
    missing_mc = index_mc < 0  # FAISS returns -1 where the searched lists hold too few rows
    candidates_mcF = unit_rows(bank_nF[index_mc.clamp(min=0).flatten()]).view(*index_mc.shape, -1)
    similarity_mc = torch.einsum("mcf,mf->mc", candidates_mcF, queries_mF).masked_fill_(missing_mc, -torch.inf)
    values_mk, place_mk = similarity_mc.topk(k, dim=1)
    return values_mk, index_mc.gather(1, place_mk)


class _TopPairs:
    """Collects pairs and drops the least similar and the repeated ones."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, first_p: Tensor, second_p: Tensor, similarity_p: Tensor) -> None:
        self.total += len(first_p)
        self.parts.append((first_p, second_p, similarity_p.float()))
        if sum(len(part[0]) for part in self.parts) > 4 * self.most:
            self._trim()

    def pairs(self) -> Pairs:
        self._trim()
        first, second, similarity = self.parts[0]
        return Pairs(first, second, similarity.clamp(-1, 1), self.total)

    def _trim(self) -> None:
        """Keep the ``most`` most similar pairs, each once."""
        first, second, similarity = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        rows = torch.stack((first, second), 1)
        unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
        best = torch.full((len(unique),), -torch.inf).scatter_reduce_(0, inverse, similarity, "amax")
        order = torch.argsort(best, descending=True, stable=True)[: self.most]
        self.parts = [(unique[order, 0], unique[order, 1], best[order])]
        self.total -= len(rows) - len(unique)


def _check(h_nF: Tensor, threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"the similarity threshold is {threshold}: it must be above 0 and at most 1")
    if h_nF.ndim != 2 or len(h_nF) < 2:
        raise ValueError(f"a search for duplicates needs at least two images, got {len(h_nF)}")
    if not torch.isfinite(h_nF).all():
        raise ValueError("the features hold NaN or infinity, so they cannot be compared")
