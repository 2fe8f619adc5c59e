"""Compute h of the images in a folder, on all devices with a progress bar, and cache it in RUN/features on request.

Shapes: n = images, F = the encoder's feature_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from simclr_lightning import machine
from simclr_lightning.app.errors import UserError, without_data_keys
from simclr_lightning.data import FolderImages, PackedImages
from simclr_lightning.data.datamodule import centred
from simclr_lightning.data.disk.decode import ImageError
from simclr_lightning.data.images import digest
from simclr_lightning.data.packs import all_images
from simclr_lightning.encoders import Encoder
from simclr_lightning.evaluation import extract
from simclr_lightning.evaluation.protocols import cache
from simclr_lightning.evaluation.protocols.features import fingerprint, shared_extract
from simclr_lightning.export import load_encoder

_BATCH, _ROUND = 64, 8192  # images per forward pass, and images per device between two writes


@dataclass(frozen=True)
class Gallery:
    """The images of a folder with their representation h.

    Attributes:
        encoder: the encoder, in evaluation mode.
        size: side of its evaluation crop, in pixels.
        files: the images, sorted by name.
        h: (n, F) float32; memory-mapped if it is cached on disk.
        notes: lines to print for the user.
    """

    encoder: Encoder
    size: int
    files: FolderImages | PackedImages
    h: Tensor
    notes: tuple[str, ...]


def open_gallery(run: Path, images: Path, *, keep: bool, load: Callable[[Path], Encoder] = load_encoder) -> Gallery:
    """Return h of every image in a folder and its subfolders.

    Args:
        run: a run's folder or an exported encoder.
        images: a folder of images, or one that ``simclr pack`` wrote.
        keep: read h from the cache in ``RUN/features`` if these weights and images are there, else write it there.
        load: loads the encoder of ``run``.

    Raises:
        UserError: there is no such folder, or an image cannot be read.
        ValueError, FileNotFoundError: from the library; the message names the file and the fix.
    """
    if not images.is_dir():
        raise UserError(f"{images}: there is no such folder of images")
    machine.limit_threads()
    encoder = load(run)
    size = encoder.size
    assert size is not None  # an export always has it
    files = all_images(images)
    if not keep:
        return Gallery(encoder, size, files, _whole(encoder, files, size), ())
    key, notes = _key(encoder, size, files), list[str]()
    path, shape = cache.folder(run) / f"images-{key}.npy", (len(files), encoder.feature_dim)
    found = cache.read(path, key, shape, notes.append)
    if found is not None:
        return Gallery(encoder, size, files, found, (f"h of {len(files)} images is read from the cache: {path}",))
    with ExitStack() as stack:
        try:
            append = stack.enter_context(cache.writing(path, key, shape))
        except OSError as error:
            notes.append(f"h is not cached: {path.parent}: {error.strerror}")
            return Gallery(encoder, size, files, _whole(encoder, files, size), tuple(notes))
        for h in _parts(encoder, files, size):
            append(h)
    made = cache.read(path, key, shape, notes.append)
    if made is None:
        raise UserError(f"{path} was written but cannot be read; check the disk")
    return Gallery(encoder, size, files, made, (*notes, f"h is cached in {path}"))


def features(encoder: Encoder, size: int, paths: list[Path]) -> tuple[FolderImages, Tensor]:
    """Return some image files, and their h (m, F) float32.

    Args:
        encoder: in evaluation mode.
        size: side of its evaluation crop, in pixels.
        paths: the files (m).

    Raises:
        UserError: a file does not exist or is not an image.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: there is no such image file")
    files = FolderImages(Path(), [str(path.absolute()) for path in paths])
    with _plain_mend():
        crops = centred(files, torch.arange(len(files)), size=size)
    return files, extract(encoder, [crops])


def _whole(encoder: Encoder, files: FolderImages | PackedImages, size: int) -> Tensor:
    h_nF, start = torch.empty(len(files), encoder.feature_dim), 0
    for h_mF in _parts(encoder, files, size):
        h_nF[start : start + len(h_mF)] = h_mF
        start += len(h_mF)
    return h_nF


def _parts(encoder: Encoder, files: FolderImages | PackedImages, size: int) -> Iterator[Tensor]:
    """Yield h (m, F) of consecutive parts of the images; each part is split over the devices."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar, _plain_mend():
        task = bar.add_task("embedding", total=len(files))

        def batches(rows: Tensor) -> Iterator[Tensor]:
            for part in rows.split(_BATCH):
                yield centred(files, part, size=size)
                bar.advance(task, len(part))

        for rows in torch.arange(len(files)).split(_ROUND * len(devices)):
            yield shared_extract(encoder, batches, rows, devices)


@contextmanager
def _plain_mend() -> Iterator[None]:
    """Inside, the message for a broken image does not mention keys of a training run."""
    try:
        yield
    except ImageError as error:
        raise UserError(without_data_keys(str(error))) from error


def _key(encoder: Encoder, size: int, files: FolderImages | PackedImages) -> str:
    if isinstance(files, PackedImages):
        state = torch.from_numpy(np.stack((files.sizes, files.checksums)))
    else:
        stats = [(files.root / name).stat() for name in files.names]
        state = torch.tensor([[stat.st_size for stat in stats], [stat.st_mtime_ns for stat in stats]])
    return digest(fingerprint(encoder), str(size), files.names, state)
