"""Extract the features that the protocols share: once, on all devices, cached on disk by fingerprint.

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
    """Which images are for what: row numbers of train (bank, held_out) and of test, labelled ones alone.

    ``bank`` votes and trains, ``held_out`` chooses, ``test`` is scored once.
    """

    bank: Tensor
    held_out: Tensor
    test: Tensor


@dataclass(frozen=True)
class Features:
    """h (n, F) float32 and classes (n,) int64 of the three parts, and the number of classes."""

    bank_h: Tensor
    bank_y: Tensor
    held_out_h: Tensor
    held_out_y: Tensor
    test_h: Tensor
    test_y: Tensor
    classes: int


@dataclass(frozen=True)
class Extractor:
    """How features are extracted.

    Args:
        devices: the images are shared among them.
        precision: of the encoder's forward pass.
        cache: the folder that keeps them; None keeps nothing.
        after_batch: called with the number of images done, for a progress bar.
        report: called with a line about a damaged or unwritable file.
    """

    devices: Sequence[torch.device]
    precision: str = "32-true"
    cache: Path | None = None
    after_batch: Callable[[int], None] = lambda count: None
    report: Callable[[str], None] = lambda line: None


def labelled_parts(splits: Splits) -> Parts | None:
    """The parts of labelled data; None where train or test has no labels."""
    train, test = splits.train, splits.test
    if train.labels is None or test is None or test.labels is None or splits.class_names is None:
        return None
    return Parts(bank_indices(train.labels, splits.held_out), splits.held_out, bank_indices(test.labels, _NO_ROWS))


def checked_parts(data: ViewsDataModule, k: int = 1) -> Parts:
    """Return the labeled parts of the images.

    Args:
        data: the images.
        k: neighbors that will vote.

    Raises:
        ValueError: there are no labels for train or test, one class, or fewer images than k.
    """
    splits = data.load()
    parts = labelled_parts(splits)
    where = "the images" if data.path is None else f"data.path={data.path}"
    if parts is None or not len(parts.test):
        raise ValueError(f"{where}: there are no labels for test to score with; give labeled images")
    assert splits.train.labels is not None
    classes = splits.train.labels[parts.bank].unique()
    if len(classes) < 2:
        raise ValueError(
            f"{where}: the labeled training images are of {len(classes)} class(es); a score needs at least 2"
        )
    if k > len(parts.bank):
        raise ValueError(
            f"knn.k={k}, but only {len(parts.bank)} labeled images vote; use knn.k={len(parts.bank)} or less"
        )
    return parts


def features(encoder: nn.Module, data: ViewsDataModule, extractor: Extractor) -> Features:
    """h of the three parts: one pass over the labelled images of train and one over test's.

    Args:
        encoder: frozen; nothing of it changes.
        data: with labels for train and test.
        extractor: where and how.
    """
    splits, parts = data.load(), labelled_parts(data.load())
    assert parts is not None
    assert splits.test is not None
    assert splits.class_names is not None
    y_train, y_test = cast(Tensor, splits.train.labels), cast(Tensor, splits.test.labels)
    train_rows = torch.cat((parts.bank, parts.held_out))
    h = _cached(encoder, data, splits.train, train_rows, extractor, "train")
    h_test = _cached(encoder, data, splits.test, parts.test, extractor, "test")
    return Features(
        h[: len(parts.bank)], y_train[parts.bank], h[len(parts.bank) :], y_train[parts.held_out],
        h_test, y_test[parts.test], len(splits.class_names),
    )  # fmt: skip


def fingerprint(encoder: Encoder) -> str:
    """Hex digest of an encoder's architecture, input normalisation and weights."""
    return encoder_weights.digest(encoder.body.state_dict(), json.dumps(encoder.spec, sort_keys=True))


def shared_extract(
    encoder: nn.Module,
    batches: Callable[[Tensor], Iterable[Tensor]],
    rows: Tensor,
    devices: Sequence[torch.device],
    *,
    precision: str = "32-true",
) -> Tensor:
    """h (n, F) of some rows, shared among the devices.

    Args:
        encoder: copied where there are several devices, else moved to the one.
        batches: gives batches (b, 3, S, S) of a part of the rows, in order; called from a thread of each device.
        rows: (n,) int64.
        devices: where to compute.
        precision: of the forward pass.
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
    """Set when the body ends, by Ctrl-C too: threads that look at it end with the batch they are at."""
    ended = threading.Event()
    try:
        yield ended
    finally:
        ended.set()


def _cached(
    encoder: nn.Module, data: ViewsDataModule, images: ImageSet, rows: Tensor, extractor: Extractor, part: str
) -> Tensor:
    """Return h from the cache, or extract it and put it there."""
    if extractor.cache is None:
        return _extracted(encoder, data, images, rows, extractor)
    own = cast(Encoder, encoder)
    key = digest(
        part, fingerprint(own), data.load().fingerprint, _file_times(images), rows,
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


def _file_times(images: ImageSet) -> Tensor | None:
    """When each file was last changed (n,): the data's fingerprint does not read whole files."""
    if not isinstance(images, FolderImages):
        return None
    return torch.tensor([(images.root / name).stat().st_mtime_ns for name in images.names])
