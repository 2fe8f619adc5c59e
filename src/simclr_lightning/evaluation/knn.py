"""Classify images by the votes of their k nearest neighbors, on frozen features.

Shapes: n = rows of the bank, m = queries, F = features, k = neighbors, C = classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from simclr_lightning.evaluation.neighbours import nearest


def knn_predict(
    bank_nF: Tensor,
    bank_labels_n: Tensor,
    queries_mF: Tensor,
    *,
    k: int = 20,
    temperature: float | None = None,
    classes: int | None = None,
) -> Tensor:
    """Return the predicted class of each query, (m,) int64: the k rows of the bank with the largest cosine vote.

    Args:
        bank_nF: features of the labeled images, any norm.
        bank_labels_n: their classes, integers from 0.
        queries_mF: features of the images to classify.
        k: neighbors that vote.
        temperature: None gives every neighbor one vote; a number t gives it exp(cosine / t) votes (Wu et al. 2018
            use 0.07).
        classes: C; None takes the largest label plus one.

    Returns:
        The class with the most votes. Of classes with equal votes, the smallest (as in scikit-learn's
        KNeighborsClassifier).

    Raises:
        ValueError: k is not in [1, n], a feature is not finite, a shape does not match, a label is not in [0, C), or
            the temperature is not above 0.

    Example:
        >>> bank, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> knn_predict(bank, labels, torch.tensor([[5.0, 1.0], [0.0, 2.0]]), k=1)
        tensor([0, 1])
    """
    votes = knn_sweep(bank_nF, bank_labels_n, queries_mF, ks=[k], temperatures=[temperature], classes=classes)
    return votes[k, temperature]


def knn_sweep(
    bank_nF: Tensor,
    bank_labels_n: Tensor,
    queries_mF: Tensor,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float | None] = (None,),
    classes: int | None = None,
) -> dict[tuple[int, float | None], Tensor]:
    """Return the predictions of `knn_predict` for every k and temperature, from one search of the bank.

    Args:
        bank_nF: features of the labeled images, any norm.
        bank_labels_n: their classes, integers from 0.
        queries_mF: features of the images to classify.
        ks: numbers of neighbors.
        temperatures: None for equal votes, or numbers above 0.
        classes: C; None takes the largest label plus one.

    Returns:
        {(k, temperature): predicted classes (m,) int64}.

    Raises:
        ValueError: as in `knn_predict`.
    """
    for temperature in temperatures:
        if temperature is not None and not temperature > 0:
            raise ValueError(f"the kNN temperature is {temperature}: it must be above 0, or None for equal votes")
    classes = _check_labels(bank_nF, bank_labels_n, classes)
    similarity_mk, index_mk = nearest(queries_mF, bank_nF, max(ks))
    label_mk = bank_labels_n.to(index_mk.device, torch.int64)[index_mk]
    found = {}
    for temperature in temperatures:
        if temperature is None:
            weight_mk = torch.ones_like(similarity_mk)
        else:
            # Subtracting the largest similarity changes no winner, and avoids overflow at small temperatures.
            weight_mk = ((similarity_mk - similarity_mk[:, :1]) / temperature).exp()
        votes_mC, counted = weight_mk.new_zeros(len(label_mk), classes), 0
        for k in sorted(set(ks)):  # the votes of k neighbors extend those of fewer neighbors
            votes_mC.scatter_add_(1, label_mk[:, counted:k], weight_mk[:, counted:k])
            found[k, temperature] = votes_mC.argmax(1)
            counted = k
    return found


def knn_accuracy(
    bank_nF: Tensor,
    bank_labels_n: Tensor,
    queries_mF: Tensor,
    query_labels_m: Tensor,
    *,
    k: int = 20,
    temperature: float | None = None,
) -> float:
    """Return the fraction in [0, 1] of queries whose class `knn_predict` predicts correctly.

    Raises:
        ValueError: as in `knn_predict`, or the numbers of queries and of query labels differ.
    """
    if len(query_labels_m) != len(queries_mF) or len(queries_mF) == 0:
        raise ValueError(
            f"the queries need one label each: got {len(queries_mF)} queries and {len(query_labels_m)} labels"
        )
    predicted_m = knn_predict(bank_nF, bank_labels_n, queries_mF, k=k, temperature=temperature)
    return (predicted_m == query_labels_m.to(predicted_m.device)).double().mean().item()


def pixels(images_n3HW: Tensor) -> Tensor:
    """Return the raw pixels of images (n, 3, H, W) uint8 as features, (n, 3HW) float32 in [0, 1].

    They are the baseline that an encoder should exceed.

    Raises:
        ValueError: the images are not uint8.
    """
    if images_n3HW.dtype != torch.uint8:
        raise ValueError(f"raw pixels as features need uint8 images, got {images_n3HW.dtype}")
    return images_n3HW.flatten(1).float().div_(255)


def _check_labels(bank_nF: Tensor, bank_labels_n: Tensor, classes: int | None) -> int:
    if bank_labels_n.shape != bank_nF.shape[:1]:
        raise ValueError(
            f"{len(bank_nF)} bank rows need one label each, got labels of shape {tuple(bank_labels_n.shape)}"
        )
    lowest, highest = (int(x) for x in bank_labels_n.aminmax())
    classes = highest + 1 if classes is None else classes
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, got labels from {lowest} to {highest}")
    return classes
