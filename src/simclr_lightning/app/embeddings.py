"""The images of a folder and their h: made on all devices with a progress bar, and kept beside the run if asked to.

Shapes: n = images, F = the encoder's feature_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

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

_BATCH, _ROUND = 64, 8192  # images in a forward pass of a device, and between two writes


@dataclass(frozen=True)
class Gallery:
    """A folder's images with their representation.

    Attributes:
        encoder: in evaluation mode.
        size: side in pixels of its evaluation crop.
        files: the images, sorted by name.
        h: (n, F) float32; memory-mapped when it is kept on disk.
        notes: lines to tell the user.
    """

    encoder: Encoder
    size: int
    files: FolderImages | PackedImages
    h: Tensor
    notes: tuple[str, ...]


def open_gallery(run: Path, images: Path, *, keep: bool) -> Gallery:
    """h of every image below a folder, from the file beside the run when one of these weights and files is there.

    Args:
        run: a run's folder or an exported encoder.
        images: a folder, or a packed one.
        keep: write h to ``RUN/features`` and look for it there.

    Raises:
        UserError: and the library's ValueError and FileNotFoundError, naming the file and the mend.
    """
    if not images.is_dir():
        raise UserError(f"{images}: there is no such folder of images")
    encoder = load_encoder(run)
    size = encoder.size
    assert size is not None  # an export always has it
    files = all_images(images)
    if not keep:
        return Gallery(encoder, size, files, _whole(encoder, files, size), ())
    key, notes = _key(encoder, size, files), list[str]()
    path, shape = cache.folder(run) / f"images-{key}.npy", (len(files), encoder.feature_dim)
    found = cache.read(path, key, shape, notes.append)
    if found is not None:
        return Gallery(encoder, size, files, found, (f"h of {len(files)} images was there: {path}",))
    with ExitStack() as stack:
        try:
            append = stack.enter_context(cache.writing(path, key, shape))
        except OSError as error:
            notes.append(f"h is not kept for the next time: {path.parent}: {error.strerror}")
            return Gallery(encoder, size, files, _whole(encoder, files, size), tuple(notes))
        for h in _parts(encoder, files, size):
            append(h)
    made = cache.read(path, key, shape, notes.append)
    if made is None:
        raise UserError(f"{path} was written and cannot be read again; look at the disk")
    return Gallery(encoder, size, files, made, (*notes, f"h is kept for the next time: {path}"))


def features(encoder: Encoder, size: int, paths: list[Path]) -> tuple[FolderImages, Tensor]:
    """Some image files by their paths, and their h (m, F).

    Raises:
        UserError: a file is not there or is no image.
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
    """h in rounds (m, F), in order, each shared among the devices."""
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
    """Name no key of a training run in the message about a broken image."""
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
