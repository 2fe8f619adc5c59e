"""The k-nearest-neighbour classifier on frozen features.

Shapes: n = bank rows, m = queries, F = features, k = neighbours, C = classes.
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
    """The class of each query (m,) int64 by a vote of its k most similar bank rows (cosine).

    Args:
        bank_nF: features of the labelled images, any norm.
        bank_labels_n: their classes, integers from 0.
        queries_mF: features of the images to classify.
        k: neighbours that vote.
        temperature: None gives every neighbour one vote; a number t gives it exp(cosine / t) votes (0.07 is
            usual).
        classes: C; None takes the largest label plus one.

    Returns:
        The class with most votes; of classes with equally many, the smallest, as scikit-learn's
        KNeighborsClassifier does.

    Raises:
        ValueError: as `nearest`; labels that do not fit the bank or lie outside [0, classes); a temperature
            that is not positive.
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
    """`knn_predict` for every k and temperature, from one search: (k, temperature) -> classes (m,) int64.

    Raises:
        ValueError: as `knn_predict`.
    """
    for temperature in temperatures:
        if temperature is not None and not temperature > 0:
            raise ValueError(f"the kNN temperature is {temperature}: it must be above 0, or None for plain votes")
    classes = _check_labels(bank_nF, bank_labels_n, classes)
    similarity_mk, index_mk = nearest(queries_mF, bank_nF, max(ks))
    label_mk = bank_labels_n.to(index_mk.device, torch.int64)[index_mk]
    found = {}
    for temperature in temperatures:
        if temperature is None:
            weight_mk = torch.ones_like(similarity_mk)
        else:
            # Relative to the most similar one: the same winner, and no overflow at small temperatures.
            weight_mk = ((similarity_mk - similarity_mk[:, :1]) / temperature).exp()
        votes_mC, counted = weight_mk.new_zeros(len(label_mk), classes), 0
        for k in sorted(set(ks)):  # the votes of k neighbours are those of fewer, and some more
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
    """The fraction in [0, 1] of queries that `knn_predict` puts into their own class.

    Raises:
        ValueError: as `knn_predict`, or the query labels do not fit the queries.
    """
    if len(query_labels_m) != len(queries_mF) or len(queries_mF) == 0:
        raise ValueError(f"{len(queries_mF)} queries with {len(query_labels_m)} labels: nothing to score")
    predicted_m = knn_predict(bank_nF, bank_labels_n, queries_mF, k=k, temperature=temperature)
    return (predicted_m == query_labels_m.to(predicted_m.device)).double().mean().item()


def pixels(images_n3HW: Tensor) -> Tensor:
    """Images (n, 3, H, W) uint8 -> their raw pixels as features (n, 3HW) float32 in [0, 1].

    The baseline that every encoder has to beat.

    Raises:
        ValueError: the images are not uint8.
    """
    if images_n3HW.dtype != torch.uint8:
        raise ValueError(f"pixels are taken from uint8 images, these are {images_n3HW.dtype}")
    return images_n3HW.flatten(1).float().div_(255)


def _check_labels(bank_nF: Tensor, bank_labels_n: Tensor, classes: int | None) -> int:
    if bank_labels_n.shape != bank_nF.shape[:1]:
        raise ValueError(
            f"{len(bank_nF)} bank rows need one label each, got labels of shape {tuple(bank_labels_n.shape)}"
        )
    lowest, highest = (int(x) for x in bank_labels_n.aminmax())
    classes = highest + 1 if classes is None else classes
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels must lie in 0 to {classes - 1}, they go from {lowest} to {highest}")
    return classes
