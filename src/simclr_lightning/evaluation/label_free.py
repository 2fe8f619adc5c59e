"""Score an encoder without labels: how many dimensions its features use, and how little they change with the view.

Every function takes finite two-dimensional tensors and returns a float. docs/label_free.md explains each score and how
well it ranks encoders.

Shapes: n = images, F = features of h, D = features of z, k = neighbors.
"""

from typing import Final

import torch
from torch import Tensor

from simclr_lightning.evaluation.neighbours import unit_rows
from simclr_lightning.ntxent import nt_xent

# The loss compares at most this many images at a time, so that it does not depend on the number of held-out images.
_CANDIDATES: Final = 128


def score_views(
    h_a_nF: Tensor, h_b_nF: Tensor, z_a_nD: Tensor, z_b_nD: Tensor, *, temperature: float | None, k: int = 20
) -> dict[str, float]:
    """Return the label-free scores of an encoder from two views of n images, by their names in `selection.LABEL_FREE`.

    One image has no ``uniformity``; one or two images have no ``neighbour_agreement``.

    Args:
        h_a_nF: output of the encoder for the first views, any norm.
        h_b_nF: output of the encoder for the second views of the same images, in the same order.
        z_a_nD: output of the projector for the first views, any norm.
        z_b_nD: output of the projector for the second views.
        temperature: of NT-Xent; None leaves ``held_out_loss`` out.
        k: neighbors of `neighbour_agreement`, reduced to n - 2 if it is larger.

    Raises:
        ValueError: the tensors differ in shape, or hold values that are not finite.
    """
    n = len(z_a_nD)
    losses, accuracies = [], []
    # Parts of nearly equal size: a part of one image would have no negatives.
    even = -(-n // -(-n // _CANDIDATES))
    for part_a, part_b in zip(z_a_nD.split(even), z_b_nD.split(even), strict=True):
        # gather=False: only this process has these views. The accuracy is the same at every temperature.
        out = nt_xent(part_a, part_b, 1.0 if temperature is None else temperature, gather=False)
        losses.append(out.loss.item() * len(part_a))
        accuracies.append(out.accuracy.item() * len(part_a))
    found = {} if temperature is None else {"held_out_loss": sum(losses) / n}
    found |= {
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
    """Return exp of the entropy of the normalized singular values of h (n, F), from 1 to min(n, F).

    1: all rows are multiples of one vector (complete collapse). min(n, F): all directions have equal singular values.
    If all features are 0, the result is 0. The features are not centered. Roy & Vetterli 2007, "The effective rank",
    definition 1.

    Raises:
        ValueError: h is not two-dimensional, is empty or holds values that are not finite.

    Example:
        >>> round(effective_rank(torch.eye(4)), 6), round(effective_rank(torch.ones(4, 4)), 3)
        (4.0, 1.0)
    """
    singular = _singular_values(h_nF)
    total = singular.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular / total).sum().exp())


def rankme(z_nD: Tensor, *, epsilon: float = 1e-7) -> float:
    """Return RankMe of z (n, D): exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) + epsilon, s the singular values.

    Garrido et al. 2023, "RankMe", equation 1, with their epsilon for float32. It differs from `effective_rank` by
    epsilon only, and is computed on the output of the projector (their "embeddings"). They use 25,600 images. With
    fewer images than a few times D the value is lower: compare values of the same n only.

    Raises:
        ValueError: as in `effective_rank`.
    """
    singular = _singular_values(z_nD)
    total = singular.sum()
    share = (singular / total if total > 0 else singular) + epsilon
    return float(torch.special.entr(share).sum().exp())


def alignment(z_a_nD: Tensor, z_b_nD: Tensor) -> float:
    """Return the mean squared distance of the two views of an image on the unit sphere, in [0, 4]; lower is better.

    Rows may have any norm; they are normalized here. Wang & Isola 2020, "Understanding contrastive representation
    learning through alignment and uniformity on the hypersphere", equation 1 with alpha = 2.

    Raises:
        ValueError: the tensors differ in shape, are empty or hold values that are not finite.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))  # a right angle
        2.0
    """
    _check_table(z_a_nD, "alignment")
    _check_pair(z_a_nD, z_b_nD, "alignment")
    difference_nD = unit_rows(z_a_nD).double() - unit_rows(z_b_nD).double()
    return difference_nD.square().sum(1).mean().item()


def uniformity(z_nD: Tensor) -> float:
    """Return log(mean of exp(-2 |u_i - u_j|^2)) over pairs of different rows, normalized to u; lower is better.

    0: all rows have the same direction. About -4: rows are spread evenly over a sphere of many dimensions. The minimum
    is -8, for two opposite rows. Wang & Isola 2020, equation 2 with t = 2.

    Raises:
        ValueError: there are fewer than two rows, or a value is not finite.
    """
    _check_table(z_nD, "uniformity")
    if len(z_nD) < 2:
        raise ValueError("uniformity compares pairs of images: it needs at least 2 images")
    distance = torch.pdist(unit_rows(z_nD).double()).square()
    return float(torch.logsumexp(-2 * distance, 0) - torch.tensor(distance.numel(), dtype=torch.float64).log())


def neighbour_agreement(h_a_nF: Tensor, h_b_nF: Tensor, k: int = 20) -> float:
    """Return the fraction of an image's k nearest neighbors that its two views have in common, in [0, 1].

    The neighbors of image i are the k other images with the largest cosine to it: once among the first views (h_a) and
    once among the second views (h_b). The score is the mean over i of (number of images in both sets) / k. Random
    neighbors give k / (n - 1) on average; features that do not change with the view give 1. An encoder that separates
    every image from all others but does not group similar images has a high contrastive accuracy and a low score here.

    Raises:
        ValueError: the tensors differ in shape, hold values that are not finite, or k is not in [1, n - 1].
    """
    _check_table(h_a_nF, "neighbor agreement")
    _check_pair(h_a_nF, h_b_nF, "neighbor agreement")
    if not 1 <= k < len(h_a_nF):
        raise ValueError(f"k = {k} neighbors of {len(h_a_nF)} images: choose k from 1 to {len(h_a_nF) - 1}")
    near_a_nn, near_b_nn = (_neighbor_mask(h_nF, k) for h_nF in (h_a_nF, h_b_nF))
    return (near_a_nn & near_b_nn).sum(1).double().mean().item() / k


def _neighbor_mask(h_nF: Tensor, k: int) -> Tensor:
    """Return an (n, n) bool mask: whether image j (column) is one of the k nearest other images of image i (row)."""
    unit_nF = unit_rows(h_nF)
    similarity_nn = (unit_nF @ unit_nF.T).fill_diagonal_(-torch.inf)
    near_nn = torch.zeros_like(similarity_nn, dtype=torch.bool)
    return near_nn.scatter_(1, similarity_nn.topk(k, dim=1).indices, True)


def _singular_values(h_nF: Tensor) -> Tensor:
    """Return the min(n, F) singular values of h, float64, in ascending order."""
    _check_table(h_nF, "effective rank")
    # The eigenvalues of the smaller Gram matrix are the squared singular values. In float64 their roots are exact to
    # 1e-8 of the largest one, which does not change the entropy.
    h_nF = h_nF.double()
    gram = h_nF.T @ h_nF if h_nF.shape[0] >= h_nF.shape[1] else h_nF @ h_nF.T
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def _check_table(h_nF: Tensor, what: str) -> None:
    if h_nF.ndim != 2 or h_nF.numel() == 0:
        raise ValueError(f"the {what} needs features of shape (images, features), got shape {tuple(h_nF.shape)}")
    if not torch.isfinite(h_nF).all():
        raise ValueError(f"the {what} needs finite features: these hold NaN or infinity")


def _check_pair(a_nF: Tensor, b_nF: Tensor, what: str) -> None:
    if a_nF.shape != b_nF.shape:
        shapes = f"{tuple(a_nF.shape)} and {tuple(b_nF.shape)}"
        raise ValueError(f"the {what} compares two views of the same images: their shapes are {shapes}")
    if not torch.isfinite(b_nF).all():
        raise ValueError(f"the {what} needs finite features: these hold NaN or infinity")
