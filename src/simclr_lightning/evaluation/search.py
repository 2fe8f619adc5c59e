"""Which images are alike: near-duplicates of a set, and the nearest neighbours where a set outgrows the memory.

The exact nearest neighbours are `nearest`'s. FAISS (the extra ``faiss``) keeps h in a byte a number and looks into a
part of the set; what it finds is measured again with the exact h.

Shapes: m = queries, n = images, F = features, k = neighbours, p = pairs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simclr_lightning.evaluation.neighbours import nearest, unit_rows

_BLOCK, _COLUMNS = 2048, 16_384  # rows and columns of the similarities that are formed at once: 128 MB
_ROUNDING = 1e-6  # of a cosine in float32: equal images must reach a threshold of 1
_ROWS_AT_ONCE = 65_536  # rows of the bank that an index is given at a time
_SMALLEST_PARTED = 40_000  # images from which an index is parted into lists
_PARTNERS = 32  # neighbours that an index is asked for, of which pairs are made

Finder = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(queries (m, F), k) -> similarities (m, k), row numbers (m, k): as `nearest` of one bank."""


class Pairs(NamedTuple):
    """Pairs of images, most similar first: row numbers (p,) with first < second, cosines (p,), and how many there were.

    ``total`` is larger than p when only the most similar were kept.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor
    total: int


def near_duplicates(h_nF: Tensor, threshold: float, *, most: int = 100_000) -> Pairs:
    """All pairs of rows whose cosine is at least `threshold`, exactly, in blocks that bound the memory.

    Args:
        h_nF: features, any norm; a zero row has cosine 0 to everything.
        threshold: above 0, at most 1; equal rows reach 1 whatever float32 rounds.
        most: of more pairs the most similar are kept.

    Raises:
        ValueError: the threshold is out of range, there are fewer than two rows, or a feature is not finite.
    """
    _check(h_nF, threshold)
    unit_nF = unit_rows(h_nF)
    kept = _Kept(most)
    for start in range(0, len(unit_nF), _BLOCK):
        for column in range(start, len(unit_nF), _COLUMNS):
            similarity = unit_nF[start : start + _BLOCK] @ unit_nF[column : column + _COLUMNS].T
            alike = (similarity >= threshold - _ROUNDING).triu(start - column + 1)  # each pair once
            first, second = alike.nonzero(as_tuple=True)
            kept.add(first + start, second + column, similarity[first, second])
    return kept.pairs()


def near_duplicates_by(find: Finder, h_nF: Tensor, threshold: float, *, most: int = 100_000) -> Pairs:
    """`near_duplicates` among the 31 nearest images of each, as an index finds them: for sets beyond the memory.

    Raises:
        ValueError: as `near_duplicates`.
    """
    _check(h_nF[:2], threshold)
    kept = _Kept(most)
    for start in range(0, len(h_nF), _BLOCK):
        similarity, index = find(h_nF[start : start + _BLOCK], min(_PARTNERS, len(h_nF)))
        row = torch.arange(start, start + len(index))[:, None].expand_as(index)
        # Each pair is met from one of its sides at least: as (i, j), as (j, i), or both.
        chosen = (similarity >= threshold - _ROUNDING) & (row != index)
        low, high = torch.minimum(row, index)[chosen], torch.maximum(row, index)[chosen]
        kept.add(low, high, similarity[chosen])
    return kept.pairs()


def groups(pairs: Pairs, count: int) -> Tensor:
    """The group of each of `count` images (count,) int64, pairs joined: -1 for one without a pair, 0 for the largest.

    Groups are numbered by falling size, then by their first image.
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
    """`nearest` in this bank."""
    return lambda queries_mF, k: nearest(queries_mF, bank_nF, k)


def faiss_index(bank_nF: Tensor) -> Finder:
    """An approximate finder for banks that do not fit in memory: reads the (memory-mapped) bank a part at a time.

    8 bits a number; from 40,000 images on parted into 4 sqrt(n) lists of which a sixteenth is looked into. The
    similarities that it gives are exact, of the rows that it found.

    Raises:
        ValueError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "an index for large sets comes from FAISS, which is missing: pip install 'simclr-lightning[faiss]'"
        ) from None
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
    """Twice as many candidates as asked for, measured exactly and put in order."""
    _, found = index.search(queries_mF.numpy(), min(2 * k + 8, len(bank_nF)))
    index_mc = torch.from_numpy(found)
    missing_mc = index_mc < 0  # an index that looks into few lists may find fewer
    candidates_mcF = unit_rows(bank_nF[index_mc.clamp(min=0).flatten()]).view(*index_mc.shape, -1)
    similarity_mc = torch.einsum("mcf,mf->mc", candidates_mcF, queries_mF).masked_fill_(missing_mc, -torch.inf)
    values_mk, place_mk = similarity_mc.topk(k, dim=1)
    return values_mk, index_mc.gather(1, place_mk)


class _Kept:
    """The most similar pairs so far; each once."""

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
        """Keep the most similar, each once."""
        first, second, similarity = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        rows = torch.stack((first, second), 1)
        unique, inverse = torch.unique(rows, dim=0, return_inverse=True)
        best = torch.full((len(unique),), -torch.inf).scatter_reduce_(0, inverse, similarity, "amax")
        order = torch.argsort(best, descending=True, stable=True)[: self.most]
        self.parts = [(unique[order, 0], unique[order, 1], best[order])]
        self.total -= len(rows) - len(unique)


def _check(h_nF: Tensor, threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold of similarity is {threshold}: it must be above 0 and at most 1")
    if h_nF.ndim != 2 or len(h_nF) < 2:
        raise ValueError(f"duplicates are pairs: there must be two images at least, not {len(h_nF)}")
    if not torch.isfinite(h_nF).all():
        raise ValueError("the features hold NaN or infinity: nothing is like NaN")
