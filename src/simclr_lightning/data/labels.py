"""Find the labels of a map-style data set, from its attributes where it has them, and number the classes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from simclr_lightning.data.disk.progress import counted
from simclr_lightning.data.items import ItemImages, Key

READ_AT_MOST: Final = 20_000  # items that are read for their labels alone
_ATTRIBUTES: Final = ("targets", "labels", "_labels", "_targets")
_PAIRS: Final = ("samples", "_samples")  # lists of (file, class)


def find_labels(images: ItemImages, label: Key) -> Sequence[Any] | None:
    """Return one label per image, or None without labels.

    Labels come from attributes such as ``targets``. Without one, every item is read once, if there are at most
    `READ_AT_MOST`; a larger data set is taken as unlabeled, with a warning.

    Args:
        images: the data set.
        label: the place of the label in an item; None: items have none.
    """
    stored = stored_labels(images.items)
    own = None if label is None else plain(_at(images.item(0), label))
    if stored is not None and (own is None or own == plain(stored[0])):
        return stored
    if own is None:
        return None
    if len(images) > READ_AT_MOST:
        warnings.warn(
            f"the labels of the {len(images):,} images are not used: they are in the items alone, and reading them "
            "would read every image; give the data set an attribute targets, or use splits_of(data, labels=LABELS)",
            stacklevel=2,
        )
        return None
    found = []
    with counted("reading the labels", unit="images", total=len(images)) as report:
        for index in range(len(images)):
            found.append(plain(_at(images.item(index), label)))
            report(1)
    return found


def stored_labels(items: Any) -> Sequence[Any] | None:
    """Return the labels that a data set stores in an attribute, one per image; None where it has none."""
    if isinstance(items, Subset):
        whole = stored_labels(items.dataset)
        return None if whole is None else [whole[int(index)] for index in items.indices]
    if isinstance(items, ConcatDataset):
        parts = [stored_labels(part) for part in items.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part or ()]
    if isinstance(items, TensorDataset):
        return items.tensors[1].tolist() if len(items.tensors) == 2 and items.tensors[1].ndim == 1 else None
    for name in (*_ATTRIBUTES, *_PAIRS):
        found = getattr(items, name, None)
        if isinstance(found, np.ndarray | Tensor):
            found = found.tolist()
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(items):
            continue
        if name in _PAIRS:
            if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in found):
                continue
            found = [pair[1] for pair in found]
        if all(plain(label) is not None for label in found):
            return found
    return None


def stored_classes(items: Any) -> tuple[str, ...] | None:
    """Return the class names that a data set stores as ``classes``, the name of class 0 first; None without them."""
    if isinstance(items, Subset):
        return stored_classes(items.dataset)
    if isinstance(items, ConcatDataset):
        return stored_classes(items.datasets[0])
    found = getattr(items, "classes", None)
    is_list = isinstance(found, Sequence) and not isinstance(found, str)
    return tuple(map(str, found)) if is_list and found else None


def numbered_classes(
    parts: Mapping[str, Sequence[Any] | None], names: tuple[str, ...] | None
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Return the class numbers (n,) int64 of each part that has labels, and the class names.

    Whole numbers that index ``names`` stay as they are. Other labels, such as 3, 7, 9 or texts, are numbered 0, 1, 2,
    ... in their order, and are the names. A negative number or None is an image without a label, -1. A part whose
    images all lack a label has none.

    >>> numbered_classes({"train": ["cat", "dog", "cat", None]}, None)
    ({'train': tensor([ 0,  1,  0, -1])}, ('cat', 'dog'))
    """
    plains = {part: [plain(label) for label in labels] for part, labels in parts.items() if labels is not None}
    plains = {part: labels for part, labels in plains.items() if any(map(_is_class, labels))}
    if "train" not in plains:
        return {}, None
    found: set[Any] = {label for labels in plains.values() for label in labels if _is_class(label)}
    if names is None or not all(isinstance(label, int) and label < len(names) for label in found):
        ordered = sorted(found, key=lambda label: (isinstance(label, str), label))
        number = {label: place for place, label in enumerate(ordered)}
        names = tuple(map(str, ordered))
    else:
        number = {label: int(label) for label in found}
    dense = {part: torch.tensor([number.get(label, -1) for label in labels]) for part, labels in plains.items()}
    return dense, names


def plain(label: Any) -> int | str | None:
    """Return a label as int or str; None for what is no class, such as a box or a caption's tensor."""
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.ndim == 0:
        label = label.item()
    return int(label) if isinstance(label, bool) else label if isinstance(label, int | str) else None


def _is_class(label: int | str | None) -> bool:
    return isinstance(label, str) or (isinstance(label, int) and label >= 0)


def _at(item: Any, place: Key) -> Any:
    try:
        return item[place]
    except (LookupError, TypeError):
        return None
