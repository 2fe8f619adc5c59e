"""Find the columns of images and classes in a data set of Hugging Face's package ``datasets``.

The package is never imported here before the user has imported it: it is loaded if such an object exists.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simclr_lightning.data.items import IMAGE_NAMES, LABEL_NAMES, Key


@dataclass(frozen=True)
class Columns:
    """The columns of a data set that are used.

    Attributes:
        images: the data set with its column of images alone, decoded to PIL images.
        image: the name of this column.
        labels: the values of the column of classes, or None.
        classes: their names, or None.
    """

    images: Any
    image: str
    labels: Sequence[Any] | None
    classes: tuple[str, ...] | None


def is_dataset(data: Any) -> bool:
    """Return whether this is a ``datasets.Dataset``."""
    package = sys.modules.get("datasets")
    return package is not None and isinstance(data, package.Dataset)


def is_iterable(data: Any) -> bool:
    """Return whether this is a ``datasets.IterableDataset``, or parts of such."""
    package = sys.modules.get("datasets")
    return package is not None and isinstance(data, package.IterableDataset | package.IterableDatasetDict)


def columns(data: Any, image: Key = None, label: Key = None) -> Columns:
    """Return the columns of a ``datasets.Dataset`` with the images and the classes.

    The images are read as they are stored, without the format and the transform of the data set.

    Args:
        data: the data set.
        image: the name of the column of images, or None: the only one with the type ``Image``, or with a usual name.
        label: the name of the column of classes, or None: the only one with the type ``ClassLabel``, or with a usual
            name and whole numbers or texts.

    Raises:
        ValueError: a named column is not there, none is found, or several are.
    """
    import datasets

    types = data.features
    image = _column(data, "image", image, [name for name, kind in types.items() if isinstance(kind, datasets.Image)])
    if image is None:
        image = next((name for name in IMAGE_NAMES if name in types), None)
    if image is None:
        raise ValueError(
            f"no column of images is found among {_listed(data)}: name it, as image= (data.dataset.image=)"
        )
    marked = [name for name, kind in types.items() if isinstance(kind, datasets.ClassLabel)]
    label = _column(data, "label", label, marked)
    if label is None:
        label = next((name for name in LABEL_NAMES if name in types and _is_plain(types[name])), None)
    plain = data.with_format(None)
    kind = types[label] if label is not None else None
    names = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    images = plain.select_columns([image])
    if not isinstance(types[image], datasets.Image):
        images = images.with_format("numpy")  # lists of numbers
    return Columns(images, image, None if label is None else list(plain[label]), names)


def _column(data: Any, what: str, named: Key, found: list[str]) -> str | None:
    if named is not None:
        if named not in data.features:
            raise ValueError(f"{what}={named}: there is no such column; the columns are {_listed(data)}")
        return str(named)
    usual = [name for name in (IMAGE_NAMES if what == "image" else LABEL_NAMES) if name in found]
    if len(found) > 1 and not usual:
        raise ValueError(f"several columns hold {what}s: {', '.join(found)}; name one: {what}= (data.dataset.{what}=)")
    return usual[0] if usual else found[0] if found else None


def _is_plain(kind: Any) -> bool:
    return getattr(kind, "dtype", "").startswith(("int", "uint", "string", "large_string", "bool"))


def _listed(data: Any) -> str:
    return ", ".join(map(str, data.features))
