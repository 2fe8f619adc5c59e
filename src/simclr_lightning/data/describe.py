"""What a data set holds, in a few lines to print before training or evaluation: parts, counts, class names."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simclr_lightning.data.images import ImageSet, Splits

NAMED = 10  # classes


def described(splits: Splits) -> list[str]:
    """Return lines with the images of each part, the class names, and the classes that a part lacks.

    >>> from simclr_lightning.data.images import TensorImages
    >>> images = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
    >>> train = TensorImages(images, torch.tensor([0, 1] * 5 + [-1, -1]))
    >>> test = TensorImages(images[:2], torch.tensor([0, 0]))
    >>> print(*described(Splits(train, test, torch.tensor([1]), ("cat", "dog"), "")), sep="\\n")
    train: 12 images, 10 of them labeled, in 2 classes; 1 held out for choices (best checkpoint, l2)
    test: 2 images in 1 class
    classes: cat, dog
    test has no image of 1 class of train: dog
    """
    n = splits.training_images
    held_out = "" if splits.val_images else f"; {len(splits.held_out):,} held out for choices (best checkpoint, l2)"
    lines = [f"train: {_counted(n, _rows(splits.train, slice(0, n)))}{held_out}"]
    if splits.val_images:
        lines.append(f"val: {_counted(splits.val_images, _rows(splits.train, slice(n, None)))}; held out for choices")
    if splits.test is not None:
        lines.append(f"test: {_counted(len(splits.test), splits.test.labels)}")
    if splits.class_names:
        lines += [f"classes: {shortened(splits.class_names)}", *_missing(splits, splits.class_names)]
    return lines


def shortened(names: Sequence[str], most: int = NAMED) -> str:
    """Return the first names: "a, b, c and 997 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _rows(images: ImageSet, rows: slice) -> Tensor | None:
    return None if images.labels is None else images.labels[rows]


def _counted(count: int, labels: Tensor | None) -> str:
    """Images, labeled ones and classes of a part."""
    images = f"{count:,} {'image' if count == 1 else 'images'}"
    if labels is None:
        return f"{images} without labels"
    labeled = int((labels >= 0).sum())
    some = f", {labeled:,} of them labeled," if labeled < count else ""
    return f"{images}{some} in {_classes(len(labels[labels >= 0].unique()))}"


def _classes(count: int) -> str:
    return f"{count:,} {'class' if count == 1 else 'classes'}"


def _missing(splits: Splits, names: Sequence[str]) -> list[str]:
    """A line for the classes that can never be right, and for those that a part never asks for."""
    labels = splits.train.labels
    if labels is None:
        return []
    bank = labels.clone()
    bank[splits.held_out] = -1
    parts = [
        ("test", None if splits.test is None else splits.test.labels),
        ("the held-out part", labels[splits.held_out]),
    ]
    lines = []
    for part, found in parts:
        if found is None or not len(found):
            continue
        of_part, of_bank = (set(classes[classes >= 0].tolist()) for classes in (found, bank))
        if lost := sorted(of_part - of_bank):
            images = int(torch.isin(found, torch.tensor(lost)).sum())
            named = shortened(_names(lost, names))
            lines.append(
                f"{part} has {_classes(len(lost))} that the images of the kNN bank and the probes lack: {named}; "
                f"{images:,} of its {len(found):,} images can never be predicted right"
            )
        if part == "test" and (unseen := sorted(of_bank - of_part)):
            lines.append(f"test has no image of {_classes(len(unseen))} of train: {shortened(_names(unseen, names))}")
    return lines


def _names(classes: Sequence[int], names: Sequence[str]) -> list[str]:
    """The names of classes; the number of one that has none."""
    return [names[number] if number < len(names) else str(number) for number in classes]
