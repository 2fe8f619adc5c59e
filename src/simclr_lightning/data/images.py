"""The return value of every source of images: sets of images, and the splits made of them.

Legend: n images, H x W pixels, 3 channels (RGB); m indices of the held-out part.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol, final, overload

import numpy as np
import torch
from torch import Tensor

from simclr_lightning.random import permutation

# `permutation` is keyed by (seed, epoch), and training orders its epochs 0, 1, 2, ... with it. Other choices use
# negative numbers, so that none of them repeats the order of an epoch.
HELD_OUT_STREAM = -1
TEST_STREAM = -2
PATCH_STREAM = -1000  # photos: this number and those below it, three for each photograph


class ImageSet(Protocol):
    """Images by index, with their names, and their labels if there are any."""

    @property
    def labels(self) -> Tensor | None:
        """Class numbers (n,) int64, -1 where an image has no label; None when no image has one."""

    @property
    def names(self) -> Sequence[str]:
        """The n names: relative file names, or names such as "train/000012"."""

    @property
    def tensor(self) -> Tensor | None:
        """All images (n, 3, H, W) uint8 when they are in memory, else None."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Tensor:
        """The image at `index` (0 to n - 1) as (3, H, W) uint8."""


@final
class TensorImages:
    """Images of one size in memory.

    Args:
        images: (n, 3, H, W) uint8.
        labels: (n,) int64 class numbers, -1 where an image has none; or None.
        names: n names; "000000", "000001", ... when left out.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, names: Sequence[str] | None = None) -> None:
        assert images.dtype == torch.uint8, images.dtype
        assert images.shape[1:2] == (3,), images.shape
        assert images.ndim == 4, images.shape
        assert labels is None or (labels.dtype == torch.int64 and labels.shape == (len(images),)), labels
        assert names is None or len(names) == len(images), len(names)
        self.tensor = images.contiguous()
        self.labels = labels
        self.names = numbered("", len(images)) if names is None else names

    def __len__(self) -> int:
        return len(self.tensor)

    def load(self, index: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8: a view of the set's memory."""
        return self.tensor[index]


@final
class Rows:
    """Some rows of a set of images as a set: its image i is image ``rows[i]`` of ``images``.

    Args:
        images: the set.
        rows: (m,) int64.
    """

    def __init__(self, images: "ImageSet", rows: Tensor) -> None:
        whole = len(rows) == len(images) and bool((rows == torch.arange(len(rows))).all())
        self._images, self._rows = images, rows
        self.labels = None if images.labels is None else images.labels[rows]
        self.tensor = images.tensor if images.tensor is None or whole else images.tensor[rows]
        self.names = PackedNames(images.names[int(row)] for row in rows)

    def __len__(self) -> int:
        return len(self._rows)

    def load(self, index: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8."""
        return self._images.load(int(self._rows[index]))


@final
class PackedNames(Sequence[str]):
    """Names stored in one bytes object instead of one Python string each.

    A million strings cost every loader worker a copy of their memory: reading a string changes its reference count,
    and so its page. The bytes object costs none, and it is sent to a worker quickly.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.fromiter(accumulate(map(len, encoded)), dtype=np.int64, count=len(encoded))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield os.fsdecode(self._bytes[start:end])
            start = end

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._bytes[start : int(self._ends[i])])


@dataclass(frozen=True)
class Splits:
    """The images of a source, and the use of each.

    Attributes:
        train: the images to train on, followed by those of a validation part (`val_images`); the labels of the
            others (if any) feed the kNN bank and the probes.
        test: the images that scores are measured on at the end; None when there are none.
        held_out: (m,) int64, sorted rows of `train`: the part that choices are made on (best checkpoint, l2). Their
            labels are never in a bank nor in a probe's training. Pretraining sees these images without labels, except
            those of a validation part.
        class_names: one name for each class number, or None without labels.
        identity: the fingerprint, or a function that returns it.
        notes: lines to print.
        skipped: "path: reason" for every file that was left out as unreadable.
        val_images: how many rows at the end of `train` are a validation part: all of them are held out, and no
            training sees them.
    """

    train: ImageSet
    test: ImageSet | None
    held_out: Tensor
    class_names: tuple[str, ...] | None
    identity: str | Callable[[], str]
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    val_images: int = 0

    @property
    def training_images(self) -> int:
        """How many images are trained on: the first rows of `train`."""
        return len(self.train) - self.val_images

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest that changes with the data: names, labels, sizes, and bytes where that is cheap."""
        return self.identity if isinstance(self.identity, str) else self.identity()


def numbered(prefix: str, count: int) -> PackedNames:
    """Return `count` names: `prefix`000000, `prefix`000001, ..."""
    return PackedNames(f"{prefix}{index:06d}" for index in range(count))


def choose(count: int, labels: Tensor | None, *, fraction: float, seed: int, stream: int) -> Tensor:
    """Return the sorted indices of a random `fraction` of `count` images, the same fraction of every class.

    The images are ordered by class, at random within a class, and chosen at even distances. So every class has its
    fraction to within one image, and the total is round(fraction * labeled), at least 1.

    Args:
        count: number of images.
        labels: (count,) int64; images with label -1 are not chosen. None: all images are of one class.
        fraction: above 0 and below 1.
        seed: the seed of the choice.
        stream: a negative number that is different for each kind of choice.

    Returns:
        (m,) int64, sorted.
    """
    order = permutation(count, seed=seed, epoch=stream)
    if labels is not None:
        order = order[torch.argsort(labels[order], stable=True)]
        order = order[labels[order] >= 0]
    m = max(1, round(fraction * len(order)))
    at = ((torch.arange(m, dtype=torch.float64) + 0.5) * (len(order) / m)).long()
    return order[at].sort().values


def choose_held_out(count: int, labels: Tensor | None, *, seed: int) -> Tensor:
    """Return the tenth of the training images that is held out for choices: sorted indices (m,) int64."""
    return choose(count, labels, fraction=0.1, seed=seed, stream=HELD_OUT_STREAM)


def in_memory(
    source: str,
    train: TensorImages,
    test: TensorImages | None,
    *,
    class_names: tuple[str, ...] | None,
    seed: int,
    notes: tuple[str, ...] = (),
    val: TensorImages | None = None,
) -> Splits:
    """Return `Splits` of images in memory, with every byte in the fingerprint.

    The held-out part is ``val``, which has labels if ``train`` has; without it, a seeded tenth of ``train``.
    """
    sets = [images for images in (train, test, val) if images is not None]
    n, held_out = len(train), choose_held_out(len(train), train.labels, seed=seed)
    if val is not None:
        labels = None if train.labels is None or val.labels is None else torch.cat((train.labels, val.labels))
        train = TensorImages(torch.cat((train.tensor, val.tensor)), labels, PackedNames([*train.names, *val.names]))
        held_out = torch.arange(n, len(train))
    return Splits(
        train=train,
        test=test,
        held_out=held_out,
        class_names=class_names,
        identity=digest(source, *(part for images in sets for part in (images.tensor, images.labels))),
        notes=notes,
        val_images=len(train) - n,
    )


def digest(*parts: str | bytes | Tensor | Sequence[str] | None) -> str:
    """Return a hex digest (32 digits) of a sequence of texts, bytes, integer tensors, lists of names and Nones.

    The kind and the length of each part come before it, so that no two sequences have the same bytes.
    """
    state = hashlib.sha256()
    for part in parts:
        if part is None:
            state.update(b"none;")
        elif isinstance(part, Tensor):
            state.update(f"tensor {part.dtype} {tuple(part.shape)};".encode())
            state.update(part.contiguous().numpy().data)
        elif isinstance(part, str | bytes):
            data = os.fsencode(part) if isinstance(part, str) else part
            state.update(b"bytes %d;" % len(data) + data)
        else:
            state.update(b"names %d;" % len(part))
            state.update(b"".join([os.fsencode(name) + b"\0" for name in part]))  # no file name has a zero byte
    return state.hexdigest()[:32]


def bank_indices(labels: Tensor, held_out: Tensor) -> Tensor:
    """Indices of labelled training images without the held-out part: the bank of kNN and the data of the probe."""
    keep = labels >= 0
    keep[held_out] = False
    return keep.nonzero().flatten()
