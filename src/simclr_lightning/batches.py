"""Read the views, the labels and the images of a batch in the forms in which loaders make them.

Shapes: N images of this process, C channels, S side of an image in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

_FORMS = 'use {"x_a": ..., "x_b": ...}, (x_a, x_b) or ((x_a, x_b), y)'
_VIEW = re.compile(r"x_[a-z]")


class Views(NamedTuple):
    """The views of one batch and, if the batch has them, the labels of its images."""

    views: tuple[Tensor, ...]
    """Two or more tensors (N, C, S, S); row i of each is a view of image i."""
    labels: Tensor | None
    """(N,), or None."""


def read_views(batch: Any) -> Views:
    """Return the views of a batch, and its labels or None.

    Args:
        batch: ``{"x_a", "x_b"}`` with the labels as "y", ``(x_a, x_b)``, or ``((x_a, x_b), y)``, to which a loader may
            add more. Further views are ``x_c``, ``x_d`` and so on, or further tensors of the tuple.

    Raises:
        ValueError: the batch has another form, fewer than two views, or views of different shapes.

    >>> import torch
    >>> x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    >>> len(read_views((x, x)).views), read_views([[x, x], y]).labels
    (2, tensor([0, 1, 2, 3]))
    """
    labels: Any = None
    if isinstance(batch, Mapping):
        views: list[Any] = [batch[key] for key in sorted(map(str, batch)) if _VIEW.fullmatch(key)]
        labels = batch.get("y")
    elif isinstance(batch, Sequence) and batch and isinstance(batch[0], Sequence):
        views, labels = list(batch[0]), batch[1] if len(batch) > 1 else None
    else:
        views = list(batch) if isinstance(batch, Sequence) else []
    if len(views) < 2 or not all(isinstance(view, Tensor) for view in views):
        raise ValueError(f"the batch is {_form(batch)}, without two views; {_FORMS}")
    shapes = {tuple(view.shape) for view in views}
    if len(shapes) > 1 or views[0].ndim < 2:
        raise ValueError(
            f"the views of the batch have the shapes {_listed(views)}; each must be (N, C, S, S). {_FORMS}"
        )
    if not isinstance(labels, Tensor) or labels.shape[:1] != views[0].shape[:1]:
        labels = None
    return Views(tuple(views), labels)


def read_images(batch: Any) -> Tensor:
    """Return the images (N, C, S, S) of a batch: a Tensor, ``(x, y)``, or ``{"x": ...}``.

    Raises:
        ValueError: the batch has another form.
    """
    if isinstance(batch, Mapping):
        batch = batch.get("x", batch)
    elif isinstance(batch, Sequence) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise ValueError(f'the batch is {_form(batch)}, without images; use a Tensor, (x, y) or {{"x": ...}}')
    return batch


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels (N,) of a batch with views, or None."""
    try:
        return read_views(batch).labels
    except ValueError:
        return None


def indices_of(batch: Any) -> Tensor | None:
    """Return the indices (N,) of a batch's images in the data set, its "indices", or None."""
    found = batch.get("indices") if isinstance(batch, Mapping) else None
    return found if isinstance(found, Tensor) else None


def image_count(batch: Any) -> int:
    """Return the number of images in a batch: the length of its first tensor, or 0 if it has none.

    >>> import torch
    >>> image_count([[torch.rand(4, 3, 8, 8)] * 2, torch.arange(4)])
    4
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    if (found := indices_of(batch)) is not None:
        return len(found)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((count for part in parts if (count := image_count(part))), 0)


def _form(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dictionary with the keys {', '.join(map(str, batch))}"
    if isinstance(batch, Tensor):
        return f"a Tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, list | tuple):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"an object of type {type(batch).__name__}"


def _listed(views: Sequence[Tensor]) -> str:
    return " and ".join(str(tuple(view.shape)) for view in views)
