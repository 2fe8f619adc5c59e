"""`data=packed`: a folder that `simclr pack` wrote, read by index from its shards.

One image is one read from a file that stays open. No folder is listed and no file is looked up by name: a shared disk
is slow at both. Names and their order are those of the folder that was packed, and so are the order of an epoch, the
views, and the part of each rank.
"""

import os
from collections.abc import Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any, final
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simclr_lightning.data.disk.decode import MAX_PIXELS, ImageError, decode_bytes, quiet
from simclr_lightning.data.disk.headers import header_size
from simclr_lightning.data.disk.layout import Part, lay_out
from simclr_lightning.data.disk.listing import list_images
from simclr_lightning.data.disk.readings import Chosen
from simclr_lightning.data.disk.scan import EXTENSIONS
from simclr_lightning.data.disk.shards import Index, is_packed, read_index, shard_name
from simclr_lightning.data.disk.unreadable import OnCorrupt, check_policy, gathered, in_threads, skip_notes, undecodable
from simclr_lightning.data.folders import FolderImages
from simclr_lightning.data.images import PackedNames, Splits, digest
from simclr_lightning.data.paths import looked_in

HEAD_BYTES = 4096  # of a packed JPEG: its size is in the first of them
OPEN_SHARDS = 256  # of a set, in one process; systems allow 1,024 open files or more


@final
class PackedImages:
    """Images in shards, decoded at every load.

    Args:
        root: the packed folder.
        index: the place of each image.
        rows: (n,) int64, the rows of the index for these images; None for all.
        labels: (n,) int64, or None.
        max_pixels: larger images are refused before decoding.
        on_corrupt: chooses the advice in an error; with "skip" the bytes of every image were checked at the start.
    """

    def __init__(
        self,
        root: Path,
        index: Index,
        rows: NDArray[np.int64] | None = None,
        labels: Tensor | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        on_corrupt: OnCorrupt = "fail",
    ) -> None:
        if rows is None:
            rows = np.arange(len(index.names))
        assert labels is None or labels.shape == (len(rows),), labels
        self.root = root
        self.names: Sequence[str] = PackedNames([index.names[row] for row in rows.tolist()])
        self.labels = labels
        self.tensor: Tensor | None = None
        self.sizes, self.checksums = index.sizes[rows], index.checksums[rows]
        self._shards, self._offsets = index.shards[rows], index.offsets[rows]
        self._max_pixels = max_pixels
        self._on_corrupt = on_corrupt
        self._open: dict[int, _Descriptor] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files: each worker opens the shards itself."""
        return {**self.__dict__, "_open": {}}

    def load(self, index: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8.

        Raises:
            ImageError: its bytes cannot be read, or differ from those packed; the message names shard and image.
        """
        try:
            data = self._read(index)
            with quiet():
                return decode_bytes(data, self._place(index), self._max_pixels)
        except ImageError as error:
            if self._on_corrupt == "skip":
                advice = "it could be read when the run started: check the disk, then resume"
            else:
                advice = "copy the shard or pack again, or leave such images out with data.dataset.on_corrupt=skip"
            raise ImageError(f"{error}; {advice}") from None

    def size(self, index: int) -> tuple[int, int] | None:
        """Return (height, width) of the image at `index` by its header; None where that cannot be read."""
        try:
            shard = self._descriptor(int(self._shards[index])).number
            head = os.pread(shard, min(HEAD_BYTES, int(self.sizes[index])), int(self._offsets[index]))
        except OSError:
            return None
        return header_size(BytesIO(head))

    def error(self, index: int) -> str | None:
        """Return the error of the bytes of the image at `index`, None if they are right; nothing is decoded."""
        try:
            self._read(index)
        except ImageError as error:
            return str(error)
        return None

    def _read(self, index: int) -> bytes:
        size, offset = int(self.sizes[index]), int(self._offsets[index])
        try:
            data = os.pread(self._descriptor(int(self._shards[index])).number, size, offset)
        except OSError as error:
            raise ImageError(f"{self._place(index)}: {error.strerror}") from None
        if len(data) != size or crc32(data) != self.checksums[index]:
            raise ImageError(f"{self._place(index)}: damaged (its checksum differs)")
        return data

    def _place(self, index: int) -> str:
        return f"{self.root / shard_name(int(self._shards[index]))}, {self.names[index]}"

    def _descriptor(self, shard: int) -> "_Descriptor":
        # Threads may open a shard twice, or drop one that another thread still reads: a descriptor is closed when no
        # thread uses it any more.
        found = self._open.get(shard)
        if found is None:
            for oldest in list(self._open)[: len(self._open) + 1 - OPEN_SHARDS]:
                self._open.pop(oldest, None)
            found = self._open[shard] = _Descriptor(self.root / shard_name(shard))
        return found


class _Descriptor:
    """An open file for `os.pread`, which has no position and so needs no lock."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def packed(
    path: Path | str | None,
    *,
    on_corrupt: OnCorrupt = "fail",
    max_skipped: int = 100,
    max_pixels: int = MAX_PIXELS,
    labels: bool = True,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    seed: int = 0,
) -> Splits:
    """Return the images that `pack` wrote, with the parts and classes that `folder` finds in their names.

    The fingerprint is made of every image's name, label, size and checksum.

    Args:
        path: the packed folder, on a local disk or one that all nodes share.
        on_corrupt: "fail" refuses an image whose bytes differ from those packed, when it is loaded. "skip" reads every
            byte once at the start and leaves damaged images out; they are counted and listed in `Splits.skipped`. A
            shard that is missing or cut short is refused at the start in both cases.
        max_skipped: the largest number of skipped images; at least 0.
        max_pixels: larger images are refused before decoding.
        labels: False ignores the class folders.
        train: as in `folder`, and so are `val` and `test`.
        val: see `folder`.
        test: see `folder`.
        seed: chooses the test part and the held-out part, where no folder is one.

    Raises:
        ValueError: not a packed folder, not finished or damaged, fewer than two images, folders that can be read in
            two ways, or an option out of range.
    """
    if path is None:
        raise ValueError("data=packed needs a folder that `simclr pack IMAGES OUT` wrote: data.path=OUT")
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else f"there is no such folder{looked_in(root)}"
        raise ValueError(f"data.path={root}: {what}")
    check_policy(on_corrupt, max_skipped, max_pixels)
    index = read_index(root)
    skipped = _damaged(root, index, max_skipped) if on_corrupt == "skip" else {}
    row = {name: number for number, name in enumerate(index.names) if name not in skipped}
    if len(row) < 2:
        raise ValueError(f"data.path={root}: {len(row)} readable image(s); SimCLR needs at least 2")
    layout = lay_out(list(row), labels=labels, seed=seed, chosen=Chosen(train, val, test))
    if len(layout.train.names) < 2:
        raise ValueError(f"{root}: {len(layout.train.names)} training image; SimCLR needs at least 2")

    def images(part: Part) -> PackedImages:
        rows = np.array([row[name] for name in part.names], dtype=np.int64)
        return PackedImages(root, index, rows, part.labels, max_pixels=max_pixels, on_corrupt=on_corrupt)

    sets = images(layout.rows()), None if layout.test is None else images(layout.test)
    return Splits(
        train=sets[0],
        test=sets[1],
        held_out=layout.held_out(seed),
        class_names=layout.class_names,
        identity=digest("packed", *(part for images in sets for part in _contents(images)), *layout.val_names()),
        notes=tuple(f"data.path: {note}" for note in (*layout.notes, *skip_notes(skipped))),
        skipped=tuple(skipped.values()),
        val_images=layout.val_images,
    )


def all_images(
    path: Path, *, on_corrupt: OnCorrupt = "fail", max_pixels: int = MAX_PIXELS, full_scale: float | None = None
) -> tuple[FolderImages | PackedImages, tuple[str, ...]]:
    """Return every image of a folder, or of a packed folder, in the order of their names, without labels.

    Args:
        path: the folder.
        on_corrupt: "skip" decodes every image once, and leaves out those that cannot be read.
        max_pixels: see `folder`.
        full_scale: see `folder`; packed images have 8 bits and do not use it.

    Returns:
        The images, and lines to print about those left out.

    Raises:
        ValueError: there are none, or the packed folder is not finished or damaged.
    """
    check_policy(on_corrupt, 0, max_pixels, full_scale)
    skips = on_corrupt == "skip"
    skipped: dict[str, str] = {}
    if is_packed(path):
        index = read_index(path)
        skipped = _damaged(path, index, len(index.names)) if skips else {}
        rows = np.array([row for row, name in enumerate(index.names) if name not in skipped], dtype=np.int64)
        if len(rows):
            return PackedImages(path, index, rows, max_pixels=max_pixels, on_corrupt=on_corrupt), _noted(skipped)
    listing = list_images(path)
    if skips and not is_packed(path):
        skipped = undecodable(listing, len(listing.names), max_pixels, full_scale)
    names = [name for name in listing.names if name not in skipped]
    if not names:
        first = f": {next(iter(skipped.values()))}" if skipped else f" (looked for {' '.join(EXTENSIONS)})"
        raise ValueError(f"{path} holds no images{first}")
    options: dict[str, Any] = {"max_pixels": max_pixels, "full_scale": full_scale, "on_corrupt": on_corrupt}
    return FolderImages(listing.root, PackedNames(names), **options), _noted(skipped)


def _noted(skipped: dict[str, str]) -> tuple[str, ...]:
    return tuple(skip_notes(skipped))


def _damaged(root: Path, index: Index, max_skipped: int) -> dict[str, str]:
    """Name -> error of every image whose bytes differ from those packed."""
    images = PackedImages(root, index)
    with closing(in_threads(images.error, range(len(images)))) as errors:
        return gathered(index.names, errors, max_skipped, f"reading {root}")


def _contents(images: PackedImages | None) -> list[Sequence[str] | Tensor | None]:
    """The parts of the fingerprint for a set of images."""
    if images is None:
        return [None]
    return [images.names, images.labels, torch.from_numpy(images.sizes), torch.from_numpy(images.checksums)]
