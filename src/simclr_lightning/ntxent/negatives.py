"""Measure how hard the negatives are: on which of them the gradient of NT-Xent falls.

The gradient of row i's loss with respect to the cosine with its negative j is p_ij / temperature, so the softmax p
decides how strongly each negative is pushed away.

Shapes: N pairs, D the width of z, P sampled pairs, R = 2P sampled rows, C = 2N columns, M = 2N - 2 negatives of a row,
K the hardest tenth of them, rounded up.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from simclr_lightning.ntxent.blocks import normalize
from simclr_lightning.ntxent.rows import LN2

# The most similarities that `hardness` computes: 16 MB in float32.
_SIMILARITIES = 1 << 22


class HardnessOutput(NamedTuple):
    """The values that ``hardness`` returns; shares are scalars in [0, 1], means over the sampled rows."""

    hardest_1: Tensor
    """Share of the negatives' gradient that falls on the most similar 1 % of them; 0.01 if all weigh the same."""
    hardest_10: Tensor
    """Share of the negatives' gradient that falls on the most similar 10 % of them; 0.1 if all weigh the same."""
    same_class_hardest_1: Tensor
    """Share of images with the class of the row among the most similar 1 % of its negatives; NaN without labels."""
    same_class_hardest_10: Tensor
    """Share of images with the class of the row among the most similar 10 % of its negatives; NaN without labels."""
    same_class_all: Tensor
    """Share of images with the class of the row among all its negatives, as a baseline; NaN without labels."""
    positives: Tensor
    """Histogram of the positives' cosines: counts (bins,) int64 in equal bins over [-1, 1]."""
    negatives: Tensor
    """Histogram of the negatives' cosines, with the same bins."""


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
    """Measure how the softmax of NT-Xent weights the negatives, on a sample of rows with all columns.

    With p_ij the softmax (paper, equation 1), the share of a set of negatives of row i is the sum of p_ij over the set,
    divided by the sum over all negatives. 1 % and 10 % of M negatives are rarely whole numbers, so the last negative
    counts partially: equally hard negatives give exactly 0.01 and 0.1.

    Args:
        z_a: (N, D) projections of the first view, any norm, N at least 2.
        z_b: (N, D) projections of the second view, in the same order.
        temperature: divisor of the cosines, above 0.
        labels: (N,) int64, the classes; negative for unknown. Rows and negatives of unknown class do not count in the
            ``same_class`` shares.
        rows: the most rows to sample: both views of pairs at equal distances in the batch. Fewer are sampled where N is
            so large that more than 2**22 similarities would be computed.
        bins: the number of bins of each histogram.

    Raises:
        ValueError: there are fewer than 2 pairs, so there are no negatives.

    >>> z = torch.eye(11)
    >>> f"{hardness(z, z, temperature=0.2).hardest_10:.2f}"
    '0.10'
    """
    n = len(z_a)
    if n < 2:
        raise ValueError(f"hardness needs at least 2 pairs, since one pair has no negatives; z_a has {n}")
    with torch.autocast(z_a.device.type, enabled=False):
        count = max(1, min(n, rows // 2, _SIMILARITIES // (4 * n)))
        picked_P = torch.arange(count, device=z_a.device) * n // count
        own_R = torch.cat((picked_P, picked_P + n))
        v_2ND, _ = normalize(torch.stack((z_a, z_b)), temperature=temperature, double=False)
        v_CD = v_2ND.flatten(0, 1)
        s_RC = v_CD[own_R] @ v_CD.T * LN2  # logits in nats
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
    """Return the positions (R, K) of each row's hardest negatives, and their weights (2, K) for 1 % and for 10 %."""
    m = s_RM.shape[1]
    # Rank by the logits: at a small temperature the softmax of most negatives is 0.
    hardest_RK = s_RM.topk(math.ceil(m / 10), dim=1).indices
    rank_K = torch.arange(hardest_RK.shape[1], dtype=torch.float64, device="cpu")
    weights_2K = torch.stack([(m * part - rank_K).clamp(0, 1) for part in (0.01, 0.1)])
    return hardest_RK, weights_2K.to(s_RM.dtype).to(s_RM.device)


def _same_class(
    labels_N: Tensor | None, own_R: Tensor, negative_RC: Tensor, hardest_RK: Tensor, weights_2K: Tensor
) -> Tensor:
    """Return the share of the row's class among the hardest 1 %, 10 % and all negatives, (3,); NaN if none is known."""
    if labels_N is None:
        return torch.full((3,), torch.nan, device=own_R.device)
    y_C = labels_N.to(own_R.device).repeat(2)
    y_RM = y_C.expand_as(negative_RC)[negative_RC].view(len(own_R), -1)
    known_RM = ((y_RM >= 0) & (y_C[own_R, None] >= 0)).to(weights_2K.dtype)
    same_RM = known_RM * (y_RM == y_C[own_R, None])
    share_3R = []
    for weights_K in weights_2K:
        among = [(x_RM.gather(1, hardest_RK) * weights_K).sum(1) for x_RM in (same_RM, known_RM)]
        share_3R.append(among[0] / among[1])  # 0 / 0, so NaN, without known classes
    share_3R.append(same_RM.sum(1) / known_RM.sum(1))
    return torch.stack([share_R.nanmean() for share_R in share_3R])


def _histogram(cosine: Tensor, bins: int) -> Tensor:
    """Return the counts (bins,) int64 over [-1, 1]; values beyond an end count in its bin, NaN in the first bin."""
    place = ((cosine.flatten() + 1) * (bins / 2)).nan_to_num(0).clamp(0, bins - 1).long()
    return torch.bincount(place, minlength=bins)
