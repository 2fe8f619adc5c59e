"""The images of a folder and their h: made on all devices with a progress bar, and kept beside the run if asked to.

Shapes: n = images, F = the encoder's feature_dim.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from simclr_lightning.cli.errors import UserError
from simclr_lightning.cli.features import FOLDER, fingerprint
from simclr_lightning.data import FolderImages, PackedImages
from simclr_lightning.data.datamodule import centred
from simclr_lightning.data.decode import ImageError
from simclr_lightning.data.images import digest
from simclr_lightning.data.packed import all_images
from simclr_lightning.data.unreadable import MEND
from simclr_lightning.evaluation import extract
from simclr_lightning.export import load_encoder

if TYPE_CHECKING:
    from simclr_lightning.encoders import Encoder

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
        h = torch.empty(len(files), encoder.feature_dim)
        _fill(encoder, files, size, h.__setitem__)
        return Gallery(encoder, size, files, h, ())
    path = _place(run) / f"images-{_key(encoder, size, files)}.npy"
    found = _kept(path, len(files), encoder.feature_dim)
    if found is not None:
        return Gallery(encoder, size, files, found, (f"h of {len(files)} images was there: {path}",))
    return _made(encoder, size, files, path)


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


def _made(encoder: Encoder, size: int, files: FolderImages | PackedImages, path: Path) -> Gallery:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = np.lib.format.open_memmap(fresh, "w+", np.float32, (len(files), encoder.feature_dim))
    except OSError as error:
        h = torch.empty(len(files), encoder.feature_dim)
        _fill(encoder, files, size, h.__setitem__)
        return Gallery(encoder, size, files, h, (f"h is not kept for the next time: {path.parent}: {error.strerror}",))
    try:
        _fill(encoder, files, size, lambda rows, h: table.__setitem__(rows, h.numpy()))
        table.flush()
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    h_nF = _kept(path, len(files), encoder.feature_dim)
    assert h_nF is not None
    return Gallery(encoder, size, files, h_nF, (f"h is kept for the next time: {path}",))


def _fill(
    encoder: Encoder, files: FolderImages | PackedImages, size: int, write: Callable[[slice, Tensor], None]
) -> None:
    """Give h to ``write`` in rounds, each shared among the devices."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]
    copies = [encoder, *(copy.deepcopy(encoder) for _ in devices[1:])]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar, _plain_mend():
        task = bar.add_task("embedding", total=len(files))

        def batches(rows: Tensor) -> Iterator[Tensor]:
            for part in rows.split(_BATCH):
                yield centred(files, part, size=size)
                bar.advance(task, len(part))

        with ThreadPoolExecutor(len(devices)) as threads:
            for start in range(0, len(files), _ROUND * len(devices)):
                rows = torch.arange(start, min(start + _ROUND * len(devices), len(files)))
                shares = [share for share in rows.tensor_split(len(devices)) if len(share)]
                made = threads.map(
                    lambda one, share, device: extract(one, batches(share), device=device), copies, shares, devices
                )
                write(slice(start, start + len(rows)), torch.cat(list(made)))


class _plain_mend:  # noqa: N801 - reads as a statement
    """Says what to do about a broken image without the key of a training run."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ImageError):
            raise UserError(f"{str(error).removesuffix(f'; {MEND}')}; mend or remove the file") from error


def _place(run: Path) -> Path:
    return (run if run.is_dir() else run.parent) / FOLDER


def _key(encoder: Encoder, size: int, files: FolderImages | PackedImages) -> str:
    if isinstance(files, PackedImages):
        state = torch.from_numpy(np.stack((files.sizes, files.checksums)))
    else:
        stats = [(files.root / name).stat() for name in files.names]
        state = torch.tensor([[stat.st_size for stat in stats], [stat.st_mtime_ns for stat in stats]])
    return digest(fingerprint(encoder), str(size), files.names, state)


def _kept(path: Path, count: int, width: int) -> Tensor | None:
    """The file's table, memory-mapped; None when there is none that fits."""
    try:
        table = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return torch.from_numpy(table) if table.shape == (count, width) and table.dtype == np.float32 else None
