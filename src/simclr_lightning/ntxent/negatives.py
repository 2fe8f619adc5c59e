"""How hard the negatives are, and what the temperature makes of it.

The gradient of row i's loss with respect to its similarity with negative j is p_ij / temperature: the softmax decides
which negatives push.

Shapes: N pairs, D the width of z, P sampled pairs, R = 2P sampled rows, C = 2N columns, M = 2N - 2 negatives of a row,
K the hardest tenth of them (the last one in part).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_lightning.ntxent.blocks import normalise
from simclr_lightning.ntxent.rows import LN2

# The most similarities that are looked at: 16 MB in float32.
_SIMILARITIES = 1 << 22


class HardnessOutput(NamedTuple):
    """What ``hardness`` returns; shares are float scalars in [0, 1], means over the sampled rows."""

    hardest_1: Tensor
    """The share of the negatives' gradient that falls on the most similar 1 % of them."""
    hardest_10: Tensor
    """... on the most similar 10 %; at an infinite temperature it is 0.1."""
    same_class_hardest_1: Tensor
    """The share of images of the row's own class among the most similar 1 % of the negatives; NaN without labels."""
    same_class_hardest_10: Tensor
    """... among the most similar 10 %."""
    same_class_all: Tensor
    """... among all negatives: what chance gives."""
    positives: Tensor
    """Counts (bins,) int64 of the positives' cosines in even bins over [-1, 1]."""
    negatives: Tensor
    """... of the negatives' cosines."""


@torch.no_grad()
def hardness(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    labels: Tensor | None = None,
    rows: int = 256,
    bins: int = 64,
) -> HardnessOutput:
    """Where the softmax over the negatives puts its mass: a sample of rows against all columns.

    With p_ij the softmax of NT-Xent (paper, equation 1), the share of a set of negatives is its part of the sum of
    p_ij over all negatives of row i. 1 % and 10 % of M negatives are rarely whole numbers: the last negative counts in
    part, so equal negatives give exactly 0.01 and 0.1.

    Args:
        z_a: (N, D) projections of the first view, any norm, N at least 2.
        z_b: (N, D) projections of the second view, in the same order.
        temperature: the divisor of the cosines, above 0.
        labels: (N,) int64, the classes; below 0 for unknown, which is left out of the shares of the same class.
        rows: rows to look at, at most: both views of pairs at even distances in the batch, whose order is random.
            All of them in batches up to half of it; fewer where N is so large that memory would not stay bounded.
        bins: bins of the histograms.

    Raises:
        ValueError: there is one pair alone, which has no negatives.
    """
    n = len(z_a)
    if n < 2:
        raise ValueError("the hardness of negatives needs at least 2 pairs: one alone has no negatives")
    with torch.autocast(z_a.device.type, enabled=False):
        count = max(1, min(n, rows // 2, _SIMILARITIES // (4 * n)))
        picked_P = torch.arange(count, device=z_a.device) * n // count
        own_R = torch.cat((picked_P, picked_P + n))
        v_2ND, _ = normalise(torch.stack((z_a, z_b)), temperature=temperature, double=False)
        v_CD = v_2ND.flatten(0, 1)
        s_RC = v_CD[own_R] @ v_CD.T * LN2  # logits, in nats
        partner_R = own_R.roll(count)
        negative_RC = torch.ones_like(s_RC, dtype=torch.bool)
        negative_RC.scatter_(1, torch.stack((own_R, partner_R), 1), False)
        s_RM = s_RC[negative_RC].view(2 * count, 2 * n - 2)
        hardest_RK, weights_2K = _hardest(s_RM)
        p_RK = s_RM.softmax(1).gather(1, hardest_RK)
        share_1, share_10 = (p_RK @ weights_2K.T).mean(0)
        same_1, same_10, same_all = _same_class(labels, own_R, negative_RC, hardest_RK, weights_2K)
        positive_R = s_RC.gather(1, partner_R[:, None])
    return HardnessOutput(
        hardest_1=share_1,
        hardest_10=share_10,
        same_class_hardest_1=same_1,
        same_class_hardest_10=same_10,
        same_class_all=same_all,
        positives=_histogram(positive_R * temperature, bins),
        negatives=_histogram(s_RM * temperature, bins),
    )


def _hardest(s_RM: Tensor) -> tuple[Tensor, Tensor]:
    """The places (R, K) of each row's hardest negatives, and how much each counts for 1 % and for 10 %: (2, K)."""
    m = s_RM.shape[1]
    # By the logits: at a small temperature the softmax of all but a few is 0.
    hardest_RK = s_RM.topk(math.ceil(m / 10), dim=1).indices
    rank_K = torch.arange(hardest_RK.shape[1], dtype=torch.float64, device="cpu")
    weights_2K = torch.stack([(m * part - rank_K).clamp(0, 1) for part in (0.01, 0.1)])
    return hardest_RK, weights_2K.to(s_RM.dtype).to(s_RM.device)


def _same_class(
    labels_N: Tensor | None, own_R: Tensor, negative_RC: Tensor, hardest_RK: Tensor, weights_2K: Tensor
) -> Tensor:
    """The share (3,) of the row's own class among the hardest 1 %, 10 % and all negatives; NaN where none is known."""
    if labels_N is None:
        return torch.full((3,), torch.nan, device=own_R.device)
    y_C = labels_N.to(own_R.device).repeat(2)
    y_RM = y_C.expand_as(negative_RC)[negative_RC].view(len(own_R), -1)
    known_RM = ((y_RM >= 0) & (y_C[own_R, None] >= 0)).to(weights_2K.dtype)
    same_RM = known_RM * (y_RM == y_C[own_R, None])
    share_3R = []
    for weights_K in weights_2K:
        among = [(x_RM.gather(1, hardest_RK) * weights_K).sum(1) for x_RM in (same_RM, known_RM)]
        share_3R.append(among[0] / among[1])  # a row that knows none is 0 / 0
    share_3R.append(same_RM.sum(1) / known_RM.sum(1))
    return torch.stack([share_R.nanmean() for share_R in share_3R])


def _histogram(cosine: Tensor, bins: int) -> Tensor:
    """Counts (bins,) int64 over [-1, 1]; rounding beyond the ends counts in the last bin, NaN in the first."""
    place = ((cosine.flatten() + 1) * (bins / 2)).nan_to_num(0).clamp(0, bins - 1).long()
    return torch.bincount(place, minlength=bins)
