"""Judgement without labels: how many dimensions the features use, and what survives a change of view.

Every function is of finite tables and returns a plain number. What each says, and how well it ranks encoders, is in
docs/label_free.md.

Shapes: n = images, F = features of h, D = features of z, k = neighbours.
"""

from typing import Final

import torch
from torch import Tensor

from simclr_lightning.evaluation.neighbours import unit_rows
from simclr_lightning.ntxent import nt_xent

# Views meet so many images at a time in the loss, so that it does not depend on how many are held out.
_CANDIDATES: Final = 128


def judge_views(
    h_a_nF: Tensor, h_b_nF: Tensor, z_a_nD: Tensor, z_b_nD: Tensor, *, temperature: float, k: int = 20
) -> dict[str, float]:
    """Every label-free score of an encoder, from two views of n images; the names are those of `BETTER`.

    Args:
        h_a_nF: the encoder's output for the first views, any norm.
        h_b_nF: ... for the second views of the same images, in the same order.
        z_a_nD: the projector's output for the first views, any norm.
        z_b_nD: ... for the second views.
        temperature: of NT-Xent.
        k: neighbours of `neighbour_agreement`; n - 2 at most are taken (with fewer than three images there is none).

    Raises:
        ValueError: as the functions that it calls.
    """
    n = len(z_a_nD)
    losses, accuracies = [], []
    # Parts of even size: one image alone would have no negatives.
    even = -(-n // -(-n // _CANDIDATES))
    for part_a, part_b in zip(z_a_nD.split(even), z_b_nD.split(even), strict=True):
        # The views lie in this process alone: it must not wait for the rows of others.
        out = nt_xent(part_a, part_b, temperature, gather=False)
        losses.append(out.loss.item() * len(part_a))
        accuracies.append(out.accuracy.item() * len(part_a))
    found = {
        "held_out_loss": sum(losses) / n,
        "contrastive_accuracy": sum(accuracies) / n,
        "alignment": alignment(z_a_nD, z_b_nD),
        "rankme": rankme(z_a_nD),
        "effective_rank": effective_rank(h_a_nF),
    }
    if n > 1:
        found["uniformity"] = (uniformity(z_a_nD) + uniformity(z_b_nD)) / 2
    if n > 2:
        found["neighbour_agreement"] = neighbour_agreement(h_a_nF, h_b_nF, min(k, n - 2))
    return found


def effective_rank(h_nF: Tensor) -> float:
    """exp of the entropy of the normalised singular values of h (n, F): from 1 to min(n, F).

    1 means that all rows are multiples of one vector (complete collapse); min(n, F) that all directions
    are used alike. A table of zeros has 0. Roy & Vetterli 2007, "The effective rank", definition 1; the
    features are not centred.

    Raises:
        ValueError: h is not a table, is empty or holds values that are not finite.
    """
    singular = _singular_values(h_nF)
    total = singular.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular / total).sum().exp())


def rankme(z_nD: Tensor, *, epsilon: float = 1e-7) -> float:
    """RankMe of z (n, D): exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) + epsilon, s the singular values.

    Garrido et al. 2023, "RankMe", equation 1, whose epsilon is this one for float32. It is the effective rank but for
    epsilon, and is measured on the projector's output (the paper's embeddings). The paper takes 25,600 images; with
    fewer than a few times D the value is lower, and comparable at the same n only.

    Raises:
        ValueError: as `effective_rank`.
    """
    singular = _singular_values(z_nD)
    total = singular.sum()
    share = (singular / total if total > 0 else singular) + epsilon
    return float(torch.special.entr(share).sum().exp())


def alignment(z_a_nD: Tensor, z_b_nD: Tensor) -> float:
    """The mean squared distance of the two views of an image on the unit sphere, in [0, 4]; lower is better.

    Wang & Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", equation 1 with alpha = 2. Rows may have any norm.

    Raises:
        ValueError: the tables differ in shape, are empty or hold values that are not finite.
    """
    _check_table(z_a_nD, "alignment")
    _check_pair(z_a_nD, z_b_nD, "alignment")
    difference_nD = unit_rows(z_a_nD).double() - unit_rows(z_b_nD).double()
    return difference_nD.square().sum(1).mean().item()


def uniformity(z_nD: Tensor) -> float:
    """log of the mean over pairs of different images of exp(-2 |u_i - u_j|^2), u the unit rows; lower is better.

    0 when all rows point the same way, -4 (in high dimensions) when they are spread evenly over the sphere; -8 at
    the lowest, for two opposite rows. Wang & Isola 2020, equation 2 with t = 2.

    Raises:
        ValueError: fewer than two rows, or values that are not finite.
    """
    _check_table(z_nD, "uniformity")
    if len(z_nD) < 2:
        raise ValueError("uniformity is of pairs of images: it needs at least 2")
    distance = torch.pdist(unit_rows(z_nD).double()).square()
    return float(torch.logsumexp(-2 * distance, 0) - torch.tensor(distance.numel(), dtype=torch.float64).log())


def neighbour_agreement(h_a_nF: Tensor, h_b_nF: Tensor, k: int = 20) -> float:
    """The share of an image's k nearest neighbours that both of its views have in common, in [0, 1].

    The neighbours of image i among the first views are the k other images whose h_a is most similar to h_a[i]
    (cosine); among the second views those by h_b. The score is the mean over images of (images in both sets) / k. Two
    unrelated orders have k / (n - 1) on average, a representation that ignores the change of view has 1. It compares
    neighbourhoods and not views, so an encoder that tells every image apart and knows no likeness scores low, where
    the contrastive accuracy is high.

    Raises:
        ValueError: the tables differ in shape, hold values that are not finite, or k is not in 1 to n - 1.
    """
    _check_table(h_a_nF, "neighbour agreement")
    _check_pair(h_a_nF, h_b_nF, "neighbour agreement")
    if not 1 <= k < len(h_a_nF):
        raise ValueError(f"k = {k} neighbours of {len(h_a_nF)} images: take k from 1 to one less than the images")
    near_a_nn, near_b_nn = (_are_neighbours(h_nF, k) for h_nF in (h_a_nF, h_b_nF))
    return (near_a_nn & near_b_nn).sum(1).double().mean().item() / k


def _are_neighbours(h_nF: Tensor, k: int) -> Tensor:
    """(n, n) bool: whether column j is one of the k nearest other images of row i."""
    unit_nF = unit_rows(h_nF)
    similarity_nn = (unit_nF @ unit_nF.T).fill_diagonal_(-torch.inf)
    near_nn = torch.zeros_like(similarity_nn, dtype=torch.bool)
    return near_nn.scatter_(1, similarity_nn.topk(k, dim=1).indices, True)


def _singular_values(h_nF: Tensor) -> Tensor:
    """The singular values of a table, float64, in ascending order; min(n, F) of them."""
    _check_table(h_nF, "effective rank")
    # Eigenvalues of the small Gram matrix are the squared singular values. Formed in float64, they are
    # exact to 1e-8 of the largest singular value, far below what changes an entropy.
    h_nF = h_nF.double()
    gram = h_nF.T @ h_nF if h_nF.shape[0] >= h_nF.shape[1] else h_nF @ h_nF.T
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def _check_table(h_nF: Tensor, what: str) -> None:
    if h_nF.ndim != 2 or h_nF.numel() == 0:
        raise ValueError(f"the {what} is of a table of features, this has shape {tuple(h_nF.shape)}")
    if not torch.isfinite(h_nF).all():
        raise ValueError(f"the {what} needs finite features: these hold NaN or infinity")


def _check_pair(a_nF: Tensor, b_nF: Tensor, what: str) -> None:
    if a_nF.shape != b_nF.shape:
        raise ValueError(f"the {what} compares two views of the same images, not {a_nF.shape} with {b_nF.shape}")
    if not torch.isfinite(b_nF).all():
        raise ValueError(f"the {what} needs finite features: these hold NaN or infinity")
