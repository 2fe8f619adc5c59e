"""Extract the features that all protocols use: once, on all devices, and cached on disk by a fingerprint.

Shapes: n = images, F = the encoder's feature_dim.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor, nn

from simclr_lightning.data import FolderImages, Splits, ViewsDataModule
from simclr_lightning.data.images import ImageSet, bank_indices, digest
from simclr_lightning.encoders import Encoder, weights as encoder_weights
from simclr_lightning.evaluation import extract
from simclr_lightning.evaluation.protocols import cache

_NO_ROWS: Final = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Parts:
    """Row numbers of the labeled images, (m,) int64: ``bank`` and ``held_out`` in train, ``test`` in test.

    ``bank`` is used to vote and to train, ``held_out`` to make choices, and ``test`` is scored once.
    """

    bank: Tensor
    held_out: Tensor
    test: Tensor


@dataclass(frozen=True)
class Features:
    """h (n, F) float32 and classes (n,) int64 of the three parts of `Parts`, and the number of classes."""

    bank_h: Tensor
    bank_y: Tensor
    held_out_h: Tensor
    held_out_y: Tensor
    test_h: Tensor
    test_y: Tensor
    classes: int


@dataclass(frozen=True)
class Extractor:
    """Options of `features`.

    Args:
        devices: the images are split over them.
        precision: of the encoder's forward pass, by Lightning's name.
        cache: the folder in which features are cached; None: no cache.
        after_batch: called with the number of images in each batch, for a progress bar.
        report: called with a line if a file of the cache is damaged or cannot be written.
        ready: rows of train (n,) and their h (n, F) that were extracted before; used if these rows are asked for.
    """

    devices: Sequence[torch.device]
    precision: str = "32-true"
    cache: Path | None = None
    after_batch: Callable[[int], None] = lambda count: None
    report: Callable[[str], None] = lambda line: None
    ready: tuple[Tensor, Tensor] | None = None


def labelled_parts(splits: Splits) -> Parts | None:
    """Return the parts of a labeled data set; None if train or test has no labels."""
    train, test = splits.train, splits.test
    if train.labels is None or test is None or test.labels is None or splits.class_names is None:
        return None
    return Parts(bank_indices(train.labels, splits.held_out), splits.held_out, bank_indices(test.labels, _NO_ROWS))


def checked_parts(data: ViewsDataModule, k: int = 1) -> Parts:
    """Return the parts of a labeled data set.

    Args:
        data: the images.
        k: the number of neighbors in kNN.

    Raises:
        ValueError: train or test has no labels, or train has one class or fewer than k images.
    """
    splits = data.load()
    parts = labelled_parts(splits)
    where = "the images" if data.path is None else f"data.path={data.path}"
    if parts is None or not len(parts.test):
        raise ValueError(f"{where}: the test images have no labels to score with; give labeled images")
    assert splits.train.labels is not None
    classes = splits.train.labels[parts.bank].unique()
    if len(classes) < 2:
        raise ValueError(
            f"{where}: the labeled training images have {len(classes)} class(es); a score needs at least 2"
        )
    if k > len(parts.bank):
        raise ValueError(
            f"knn.k={k} is larger than the {len(parts.bank)} labeled images in the bank; use at most that many"
        )
    return parts


def features(encoder: nn.Module, data: ViewsDataModule, extractor: Extractor) -> Features:
    """Return h and the classes of the three parts, from one pass over the labeled images of train and of test.

    Args:
        encoder: in evaluation mode; it is not changed.
        data: images with labels for train and test.
        extractor: devices, precision and cache.
    """
    splits, parts = data.load(), labelled_parts(data.load())
    assert parts is not None
    assert splits.test is not None
    assert splits.class_names is not None
    y_train, y_test = cast(Tensor, splits.train.labels), cast(Tensor, splits.test.labels)
    train_rows = torch.cat((parts.bank, parts.held_out))
    if extractor.ready is not None and torch.equal(extractor.ready[0], train_rows):
        h = extractor.ready[1]
        extractor.after_batch(len(h))
    else:
        h = _cached(encoder, data, splits.train, train_rows, extractor, "train")
    h_test = _cached(encoder, data, splits.test, parts.test, extractor, "test")
    return Features(
        h[: len(parts.bank)], y_train[parts.bank], h[len(parts.bank) :], y_train[parts.held_out],
        h_test, y_test[parts.test], len(splits.class_names),
    )  # fmt: skip


def fingerprint(encoder: Encoder) -> str:
    """Return a hex digest of an encoder's architecture, input normalization and weights."""
    return encoder_weights.digest(encoder.body.state_dict(), json.dumps(encoder.spec, sort_keys=True))


def shared_extract(
    encoder: nn.Module,
    batches: Callable[[Tensor], Iterable[Tensor]],
    rows: Tensor,
    devices: Sequence[torch.device],
    *,
    precision: str = "32-true",
) -> Tensor:
    """Return h (n, F) of some rows, computed on several devices.

    Args:
        encoder: copied to each device if there are several, else moved to the only one.
        batches: returns batches (b, 3, S, S) of a part of the rows, in order; called from one thread per device.
        rows: (n,) int64.
        devices: the rows are split over them.
        precision: of the forward pass, by Lightning's name.
    """
    devices = devices[: max(1, len(rows))]
    if len(devices) == 1:
        return extract(encoder, batches(rows), device=devices[0], precision=precision)
    copies = [copy.deepcopy(encoder) for _ in devices]
    with ThreadPoolExecutor(len(devices)) as threads, _ending() as ended:
        made = threads.map(
            lambda one, part, device: extract(
                one, takewhile(lambda x: not ended.is_set(), batches(part)), device=device, precision=precision
            ),
            copies, rows.tensor_split(len(devices)), devices,
        )  # fmt: skip
        return torch.cat(list(made))


@contextmanager
def _ending() -> Iterator[threading.Event]:
    """Yield an event that is set when the body ends, also by Ctrl-C; threads that test it stop after their batch."""
    ended = threading.Event()
    try:
        yield ended
    finally:
        ended.set()


def _cached(
    encoder: nn.Module, data: ViewsDataModule, images: ImageSet, rows: Tensor, extractor: Extractor, part: str
) -> Tensor:
    """Return h from the cache, or extract and cache it."""
    if extractor.cache is None:
        return _extracted(encoder, data, images, rows, extractor)
    own = cast(Encoder, encoder)
    key = digest(
        part, fingerprint(own), data.load().fingerprint, file_times(images), rows,
        str(data.recipe.size), extractor.precision,
    )  # fmt: skip
    path, shape = extractor.cache / f"{part}-{key[:16]}.npy", (len(rows), own.feature_dim)
    found = cache.read(path, key, shape, extractor.report)
    if found is not None:
        extractor.after_batch(len(rows))
        return found
    h = _extracted(encoder, data, images, rows, extractor)
    try:
        with cache.writing(path, key, shape) as append:
            append(h)
    except OSError as error:
        extractor.report(f"the features are not cached: {path.parent}: {error.strerror}")
    return h


def _extracted(
    encoder: nn.Module, data: ViewsDataModule, images: ImageSet, rows: Tensor, extractor: Extractor
) -> Tensor:
    def batches(part: Tensor) -> Iterator[Tensor]:
        for x_b3SS in data.eval_batches(images, part):
            yield x_b3SS
            extractor.after_batch(len(x_b3SS))

    return shared_extract(encoder, batches, rows, extractor.devices, precision=extractor.precision)


def file_times(images: ImageSet) -> Tensor | None:
    """Return the modification times of the files (n,), since the fingerprint of the data does not read whole files."""
    if not isinstance(images, FolderImages):
        return None
    return torch.tensor([(images.root / name).stat().st_mtime_ns for name in images.names])
