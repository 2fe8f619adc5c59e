"""Images of a map-style data set: torchvision's, your own, or a list, one ``data_set[index]`` per image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import torch
from torch import Tensor

from simclr_lightning.data.images import ImageSet, PackedNames, digest, numbered
from simclr_lightning.data.pixels import kind_of, to_bytes
from simclr_lightning.data.seeding import seeded

IMAGE_NAMES: Final = ("image", "img", "pixel_values", "x")
LABEL_NAMES: Final = ("label", "labels", "target", "class", "fine_label", "y")
SAMPLED = 64  # images whose pixels are in the fingerprint

Key = int | str | None


@final
class ItemImages:
    """Images of any object with ``len(items)`` and ``items[index]``.

    The global random generators are seeded while an item is read, so a data set with random transforms gives the same
    image for the same (seed, epoch, index).

    Args:
        items: the data set. An item is an image, or a tuple, list or dict that contains one.
        image: the place of the image in an item: a position, a key, or None if the item is the image.
        prefix: the start of the names, such as "train/".
        labels: (n,) int64, -1 where an image has none; or None.
    """

    def __init__(self, items: Any, image: Key = None, *, prefix: str = "", labels: Tensor | None = None) -> None:
        self.items = items
        self.labels = labels
        self.tensor: Tensor | None = None
        self.names: Sequence[str] = numbered(prefix, len(items))
        self.is_repeatable = True
        self._image = image
        self._kind = kind_of(self._picked(self.item(0), 0))

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8, as in epoch 0 of seed 0."""
        return self.load_keyed(index, seed=0, epoch=0)

    def load_keyed(self, index: int, *, seed: int, epoch: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8; random numbers of the data set depend on (seed, epoch, index) only.

        Raises:
            ValueError: the data set raised an error, or this is no image, or one of another kind than image 0.
        """
        image = self._picked(self.item(index, seed=seed, epoch=epoch), index)
        kind = kind_of(image)
        if kind != self._kind:
            found = kind or f"of type {type(image).__name__}, which is not an image"
            raise ValueError(
                f"{self._name(index)} is {_a(found)}, and image 0 {_a(self._kind or 'something else')}: "
                "return one kind for every index"
            )
        try:
            return to_bytes(image)
        except ValueError as error:
            raise ValueError(f"{self._name(index)} {error}") from None

    def check(self) -> None:
        """Read image 0 twice, so that wrong data are refused now, and warn if its pixels differ.

        Raises:
            ValueError: as `load`.
        """
        if not torch.equal(self.load(0), self.load(0)):
            self.is_repeatable = False
            warn_of_own_generator(f"the data set ({type(self.items).__name__})")

    def item(self, index: int, *, seed: int = 0, epoch: int = 0) -> Any:
        """Return ``items[index]``; see `item_of`."""
        return item_of(self.items, index, seed=seed, epoch=epoch)

    def identity(self) -> str:
        """Return a digest of the class of the data set, its length, its labels, and the pixels of `SAMPLED` images.

        These images are at even distances, the first and the last among them. A change of other pixels alone is not
        noticed: reading all images would take minutes to hours. If two readings of image 0 differ, no pixels count.
        """
        n = len(self)
        rows = sorted({round(i * (n - 1) / max(1, min(n, SAMPLED) - 1)) for i in range(min(n, SAMPLED))})
        pixels: list[str | Tensor] = []
        for row in rows if self.is_repeatable else ():
            image = self.load(row)
            pixels += [str(tuple(image.shape)), image]
        return digest("items", type(self.items).__qualname__, str(n), self.labels, *pixels)

    def _picked(self, item: Any, index: int) -> Any:
        if self._image is None:
            return item
        try:
            return item[self._image]
        except (LookupError, TypeError):
            raise ValueError(f"{self._name(index)}: the item is {shape_of(item)}, without {self._image!r}") from None

    def _name(self, index: int) -> str:
        return _named(self.items, index)


def item_of(items: Any, index: int, *, seed: int = 0, epoch: int = 0) -> Any:
    """Return ``items[index]``, with the global random generators seeded by (seed, epoch, index).

    Raises:
        ValueError: the data set raised an error.
    """
    try:
        with seeded(seed=seed, epoch=epoch, index=index):
            return items[index]
    except Exception as error:  # the user's code may raise anything
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{_named(items, index)} cannot be read: {text}") from error


def _named(items: Any, index: int) -> str:
    return f"image {index} of the data set ({type(items).__name__})"


@final
class Joined:
    """The images of two sets as one, those of ``first`` before those of ``second``."""

    def __init__(self, first: ImageSet, second: ImageSet) -> None:
        self.tensor: Tensor | None = None
        self.names: Sequence[str] = PackedNames([*first.names, *second.names])
        self._first, self._second = first, second
        has = first.labels is not None and second.labels is not None
        self.labels = torch.cat((first.labels, second.labels)) if has else None  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8."""
        return self.load_keyed(index, seed=0, epoch=0)

    def load_keyed(self, index: int, *, seed: int, epoch: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8; see `ItemImages.load_keyed`."""
        images, own = (self._first, index) if index < len(self._first) else (self._second, index - len(self._first))
        return load_keyed(images, own, seed=seed, epoch=epoch)


def load_keyed(images: ImageSet, index: int, *, seed: int, epoch: int) -> Tensor:
    """Return the image at `index` as (3, H, W) uint8, for training in `epoch`; only data sets of users depend on it."""
    if isinstance(images, ItemImages | Joined):
        return images.load_keyed(index, seed=seed, epoch=epoch)
    return images.load(index)


def warn_of_own_generator(name: str) -> None:
    """Warn that the random numbers of a user's code are not those of the global generators."""
    warnings.warn(
        f"{name} gives another result for the same image, although the global generators of torch, NumPy and Python "
        "are seeded for each call, so it has another generator: views differ between runs, and a resume is not exact",
        stacklevel=2,
    )


def places(item: Any, image: Key, label: Key) -> tuple[Key, Key]:
    """Return the places of the image and the label in an item, as positions or keys; None: the item itself, no label.

    Args:
        item: an image, (image,), (image, label), or a dict. Longer tuples need ``image``.
        image: the place of the image, or None to find it.
        label: the place of the label, or None to find it.

    Raises:
        ValueError: the item has another form, or a named place is not there.
    """
    if isinstance(item, Mapping):
        images = [key for key, value in item.items() if kind_of(value) is not None]
        named = [name for name in IMAGE_NAMES if name in images]
        if image is None and not named and len(images) != 1:
            raise ValueError(f"the items of the data set are {shape_of(item)}: name the image, such as image='photo'")
        return (
            image if image is not None else (named or images)[0],
            label if label is not None else next((name for name in LABEL_NAMES if name in item), None),
        )
    if kind_of(item) is not None and image is None:
        return None, None
    if isinstance(item, tuple | list) and (image is not None or (len(item) in (1, 2) and kind_of(item[0]))):
        return image or 0, label if label is not None or len(item) != 2 else 1
    if isinstance(item, tuple | list):
        where = ": name the places, such as image=0, label=1" if any(map(kind_of, item)) else ""
        raise ValueError(f"the items of the data set are {shape_of(item)}; expected (image, label) or an image{where}")
    raise ValueError(
        f"the items of the data set are of type {type(item).__name__}; expected a PIL image, an array, a tensor, or "
        "(image, label)"
    )


def shape_of(item: Any) -> str:
    """Return the form of an item as text.

    >>> shape_of((torch.zeros(3, 4, 4), 7, "a.jpg"))
    'tuples of 3 (float tensor, int, str)'
    """
    if isinstance(item, Mapping):
        return "dicts with " + ", ".join(f"{key!r} ({_what(value)})" for key, value in [*item.items()][:8])
    if isinstance(item, tuple | list):
        return f"{type(item).__name__}s of {len(item)} ({', '.join(map(_what, item[:8]))})"
    return _what(item)


def _what(value: Any) -> str:
    return kind_of(value) or type(value).__name__


def _a(text: str) -> str:
    return text if text.startswith("of ") else f"{'an' if text[0] in 'aeio' else 'a'} {text}"
