"""Make `Splits` of any data: arrays, tensors, torch and Hugging Face data sets, parts of these, folders, functions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from simclr_lightning.data import columns
from simclr_lightning.data.arrays import array, images_tensor
from simclr_lightning.data.disk.part_names import part_name
from simclr_lightning.data.disk.shards import is_packed
from simclr_lightning.data.folders import folder
from simclr_lightning.data.images import ImageSet, Splits, TensorImages, choose_held_out, digest, in_memory, numbered
from simclr_lightning.data.items import ItemImages, Joined, Key, item_of, places
from simclr_lightning.data.labels import find_labels, numbered_classes, stored_classes
from simclr_lightning.data.packs import packed

KINDS: Final = (
    "Splits, a function that returns them, an array or tensor of images (n, H, W, 3) or (n, 3, H, W) uint8, "
    "(images, labels), a map-style data set, a Hugging Face data set, (train, test) of these, or a folder"
)

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def splits_of(
    data: Any,
    *,
    path: Path | None = None,
    labels: Sequence[Any] | None = None,
    image: Key = None,
    label: Key = None,
    seed: int = 0,
) -> Splits:
    """Return the `Splits` of any data; `ViewsDataModule` calls this for its first argument.

    - `Splits`: themselves.
    - A function or class: its result for ``path``; without a path, for no argument if it needs none.
    - A NumPy array or a tensor: uint8 images (n, H, W), (n, H, W, C) or (n, C, H, W), C = 1 or 3.
    - ``(images, labels)``, with one label per image.
    - A map-style data set, such as torchvision's, a torch ``Dataset`` or a list. An item is a PIL image, an array, a
      tensor (uint8, or floating-point in [0, 1]), a pair (image, label), or a dict with an image and a label. Labels
      and class names are read from ``targets``, ``labels`` and ``classes`` if there are any.
    - A Hugging Face data set; its column of images and its column of classes are found by their types.
    - ``(train, test)``, or a dict with the parts "train", "validation" and "test".
    - The path of a folder, of a packed folder or of an .npz file.

    Without a validation part, the held-out part is a seeded tenth of train. A validation part without a test part is
    the test part.

    The fingerprint of images in memory covers every byte. That of other data sets covers the class, length, labels,
    and the pixels of up to 64 images of each part (`ItemImages.identity`): a change of other images is not noticed.

    Args:
        data: one of these.
        path: for a function.
        labels: one label per training image, instead of those that are found.
        image: the position, key or column of the image in an item, or None to find it.
        label: the same for the label.
        seed: chooses the held-out part.

    Raises:
        ValueError: the data are of another kind, empty, or not as described; the message names the cause.

    >>> images = np.zeros((20, 8, 8, 3), dtype=np.uint8)
    >>> splits = splits_of((images, [0, 1] * 10))
    >>> len(splits.train), splits.test, splits.class_names
    (20, None, ('0', '1'))
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, str | Path):
        return _from_path(Path(data).expanduser())
    if _is_function(data):
        made = _call(data, path)
        if _is_function(made):
            raise ValueError(f"{_name(data)} returned a function; it must return {KINDS}")
        return splits_of(made, path=path, labels=labels, image=image, label=label, seed=seed)
    parts = {role: _Part(part, role, image, label) for role, part in _parts(data).items()}
    if labels is not None:
        parts["train"].use(labels)
    return _joined(parts, seed)


class _Part:
    """One part of the data: a set of images without labels, its labels of any kind, and its class names."""

    def __init__(self, data: Any, role: str, image: Key, label: Key) -> None:
        self.labels: Sequence[Any] | None = None
        self.classes: tuple[str, ...] | None = None
        if isinstance(data, tuple) and len(data) == 2 and _is_labels(data[1], data[0]):
            data, self.labels = data
        _refuse(data)
        if not len(data):
            raise ValueError(f"the {role} data set is empty: it has length 0; SimCLR needs at least 2 images")
        self.images: ImageSet
        if isinstance(data, np.ndarray | Tensor):
            self.images = TensorImages(images_tensor(data), None, numbered(f"{role}/", len(data)))
        elif columns.is_dataset(data):
            found = columns.columns(data, image, label)
            self.images = images = ItemImages(found.images, found.image, prefix=f"{role}/")
            images.check()
            self.labels, self.classes = self.labels or found.labels, found.classes
        else:
            self._read_items(data, role, image, label)
        if self.labels is not None:
            self.use(self.labels)

    def use(self, labels: Sequence[Any]) -> None:
        """Take these labels, one per image."""
        if len(labels) != len(self.images):
            raise ValueError(f"there are {len(labels):,} labels for {len(self.images):,} images: give one per image")
        self.labels = labels

    def _read_items(self, data: Any, role: str, image: Key, label: Key) -> None:
        image, label = places(item_of(data, 0), image, label)
        self.images = images = ItemImages(data, image, prefix=f"{role}/")
        images.check()
        self.classes = stored_classes(data)
        if self.labels is None:
            self.labels = find_labels(images, label)


def _joined(parts: dict[str, _Part], seed: int) -> Splits:
    classes = next((part.classes for part in parts.values() if part.classes), None)
    numbers, names = numbered_classes({role: part.labels for role, part in parts.items()}, classes)
    for role, part in parts.items():
        part.images.labels = numbers.get(role)  # type: ignore[misc]
    notes: tuple[str, ...] = ()
    if "val" in parts and "test" not in parts:
        parts["test"] = parts.pop("val")
        notes = ("the validation part is taken as the test part, as there is no test part",)
    sets = {role: part.images for role, part in parts.items()}
    train, val, test = sets["train"], sets.get("val"), sets.get("test")
    if len(train) < 2:
        raise ValueError("the train data set has 1 image; SimCLR needs at least 2")
    if _in_memory(train) and (test is None or _in_memory(test)) and (val is None or _in_memory(val, like=train)):
        return in_memory("array", train, test, val=val, class_names=names, seed=seed, notes=notes)  # type: ignore[arg-type]
    return Splits(
        train=train if val is None else Joined(train, val),
        test=test,
        held_out=choose_held_out(len(train), train.labels, seed=seed)
        if val is None
        else torch.arange(len(train), len(train) + len(val)),
        class_names=names,
        identity=lambda: digest("parts", *(f"{role}:{_identity(images)}" for role, images in sets.items())),
        notes=notes,
        val_images=0 if val is None else len(val),
    )


def _in_memory(images: ImageSet, like: ImageSet | None = None) -> bool:
    tensor, other = images.tensor, None if like is None else like.tensor
    return tensor is not None and (other is None or tensor.shape[1:] == other.shape[1:])


def _identity(images: ImageSet) -> str:
    return images.identity() if isinstance(images, ItemImages) else digest(images.tensor, images.labels)


def _parts(data: Any) -> dict[str, Any]:
    """Return the parts of the data by role: train, and if there are any, val and test."""
    if isinstance(data, Mapping):
        return _named_parts(data)
    if not isinstance(data, tuple) or hasattr(data, "_fields"):
        return {"train": data}
    if len(data) != 2:
        raise ValueError(f"a tuple of {len(data)} was given as data; expected (train, test) or (images, labels)")
    if data[1] is None:
        return {"train": data[0]}
    return {"train": data} if _is_labels(data[1], data[0]) else {"train": data[0], "test": data[1]}


def _named_parts(data: Mapping[Any, Any]) -> dict[str, Any]:
    if len(data) == 1:
        return {"train": next(iter(data.values()))}
    found: dict[str, Any] = {}
    for name, part in data.items():
        role = part_name(str(name)).role
        role = "val" if role == "held_out" else role
        if role in ("train", "val", "test") and role not in found:
            found[role] = part
    if "train" not in found:
        names = ", ".join(map(repr, data))
        raise ValueError(f"the parts of the data are {names}: none is called train; pass (data['...'], data['...'])")
    return found


def _is_labels(second: Any, first: Any) -> bool:
    """Return whether the second of two objects holds one label for each image of the first."""
    if isinstance(second, np.ndarray | Tensor):
        return second.ndim == 1
    plain = isinstance(second, list | tuple | range) and all(isinstance(label, int | str | None) for label in second)
    return plain and (len(second) > 0 or not len(first))


def _refuse(data: Any) -> None:
    """Refuse data that have no index or length."""
    name = _name(data)
    if isinstance(data, DataLoader):
        raise ValueError("a DataLoader was given as data; pass its data set: loader.dataset")
    if isinstance(data, IterableDataset) or columns.is_iterable(data):
        raise ValueError(
            f"{name} is an iterable data set: its images have no index, and order, views and exact resume are keyed by "
            "the index; use a map-style data set, or write the images to a folder or an array"
        )
    if data is None or isinstance(data, bytes) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        what = ", which has no length and no index" if isinstance(data, Iterable) else ""
        raise ValueError(f"{name} was given as data{what}; expected {KINDS}")
    try:
        len(data)
    except Exception as error:  # the user's code, or torch's Dataset without __len__
        raise ValueError(f"{name} has no length ({type(error).__name__}: {error}); define __len__") from None


def _is_function(data: Any) -> bool:
    return callable(data) and (isinstance(data, type) or not hasattr(data, "__getitem__"))


def _call(function: Any, path: Path | None) -> Any:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none
        return function(path)
    needed = [one for one in signature.parameters.values() if one.default is one.empty and one.kind not in _VARIADIC]
    return function(path) if needed or (path is not None and signature.parameters) else function()


def _from_path(path: Path) -> Splits:
    if path.suffix == ".npz":
        return array(path)
    return packed(path) if is_packed(path) else folder(path)


def _name(data: Any) -> str:
    return getattr(data, "__name__", None) or f"an object of type {type(data).__name__}"
