"""`data=folder`: a folder of image files, with or without class folders.

DIR/cat/1.jpg  DIR/dog/2.jpg                labeled; a seeded fifth is held aside as test
DIR/train/cat/1.jpg  DIR/test/cat/2.jpg     labeled, with a test part; `part_names` has the names of parts
DIR/1.jpg  DIR/2.jpg                        not labeled; neither is a mixture of files and folders
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final
from zlib import crc32

import torch
from torch import Tensor

from simclr_lightning.data.disk.decode import MAX_PIXELS, ImageError, read_image
from simclr_lightning.data.disk.headers import header_size
from simclr_lightning.data.disk.layout import Layout, Part, lay_out
from simclr_lightning.data.disk.listing import Listing, list_images, passed_over, sizes_now
from simclr_lightning.data.disk.readings import Chosen
from simclr_lightning.data.disk.scan import EXTENSIONS
from simclr_lightning.data.disk.shards import is_packed
from simclr_lightning.data.disk.unreadable import (
    MEND,
    OnCorrupt,
    check_heads,
    check_policy,
    in_threads,
    skip_notes,
    spread,
    undecodable,
)
from simclr_lightning.data.images import PackedNames, Splits, digest
from simclr_lightning.data.paths import looked_in

SAMPLE_BYTES = 4096  # of each sampled file's start and of its end, for the fingerprint


@final
class FolderImages:
    """Images in files, decoded at every load.

    Args:
        root: the folder.
        names: file names relative to it, "/" between their parts.
        labels: (n,) int64, or None.
        max_pixels: larger images are refused before decoding.
        full_scale: the sample value of white in files of 16 bits and more, or None: see `read_image`.
        on_corrupt: chooses the advice in an error; with "skip" every file was decoded at the start.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Tensor | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        full_scale: float | None = None,
        on_corrupt: OnCorrupt = "fail",
    ) -> None:
        assert labels is None or labels.shape == (len(names),), labels
        self.root = root
        self.names = names
        self.labels = labels
        self.tensor: Tensor | None = None
        self._max_pixels = max_pixels
        self._full_scale = full_scale
        self._on_corrupt = on_corrupt

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8.

        Raises:
            ImageError: the file cannot be read as an image; the message names it.
        """
        try:
            path = self.root / self.names[index]
            return read_image(path, max_pixels=self._max_pixels, full_scale=self._full_scale)
        except ImageError as error:
            if self._on_corrupt == "skip":
                advice = "it could be read when the run started: check the disk, then resume"
            else:
                advice = MEND
            raise ImageError(f"{error}; {advice}") from None

    def size(self, index: int) -> tuple[int, int] | None:
        """Return (height, width) of the image at `index` by its file's header; None where that cannot be read."""
        return header_size(self.root / self.names[index])


def folder(
    path: Path | str | None,
    *,
    on_corrupt: OnCorrupt = "fail",
    max_skipped: int = 100,
    max_pixels: int = MAX_PIXELS,
    full_scale: float | None = None,
    labels: bool = True,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    seed: int = 0,
) -> Splits:
    """Return the images below a folder; formats, modes and orientation as in `read_image`.

    Every regular file below `path` with the extension of an image is found once, under its own name. Hidden files,
    system folders, folders of runs, links to folders and links out of `path` are left out. Folders named like train,
    val, test or unlabeled are parts (see `read` in `readings`). Class folders are the first level below a part, when
    every image is in one and there are at least two. Class numbers follow the sorted names.

    Without a labeled test part, `test` is a seeded fifth of every class. The held-out part is the validation part, or
    a seeded tenth of the training images of every class. With a validation part and no test part, the validation part
    is `test`, unless the argument `val` names it.

    The fingerprint is made of names, labels, sizes and up to 8 kB of up to 10,000 files. Times do not count: a copy of
    the folder is the same data. The list of a large folder's files is stored between runs and used while no folder
    below `path` changes (see `scan_cache`).

    Args:
        path: the folder.
        on_corrupt: "fail" refuses a file that cannot be read as an image: at the start, if its size or one of up to
            10,000 heads shows it, else when it is loaded. "skip" decodes every file once at the start (about 1 ms for
            a photograph on one core) and leaves out those that fail; they are counted and listed in `Splits.skipped`.
        max_skipped: the largest number of skipped files; at least 0.
        max_pixels: an image with more pixels counts as one that cannot be read; it is not decoded.
        full_scale: the sample value of white in files of 16 bits and more, or None: see `read_image`.
        labels: False ignores the class folders.
        train: the folder with the training images, relative to `path`; "." for `path` itself, whose subfolders then
            are the classes. None: found by its name.
        val: the folder of the validation part. None: found by its name.
        test: the folder of the test part. None: found by its name.
        seed: chooses the test part and the held-out part, where no folder is one.

    Raises:
        ValueError: no such folder, fewer than two images, folders that can be read in two ways, classes that train
            does not have, or an option out of range.
        ImageError: a file cannot be read; the message names it.
    """
    root = _check(path)
    check_policy(on_corrupt, max_skipped, max_pixels, full_scale)
    listing = list_images(root)
    skipped: dict[str, str] = {}
    if on_corrupt == "fail":
        check_heads(listing, max_pixels)
    else:
        skipped = undecodable(listing, max_skipped, max_pixels, full_scale)
    names = [name for name in listing.names if name not in skipped] if skipped else listing.names
    if len(names) < 2:
        raise ValueError(_too_few(listing, len(names), skipped))
    layout = lay_out(names, labels=labels, seed=seed, chosen=Chosen(train, val, test))
    if len(layout.train.names) < 2:
        raise ValueError(f"{listing.root}: {len(layout.train.names)} training image; SimCLR needs at least 2")

    def images(part: Part) -> FolderImages:
        options: dict[str, Any] = {"max_pixels": max_pixels, "full_scale": full_scale, "on_corrupt": on_corrupt}
        return FolderImages(listing.root, PackedNames(part.names), part.labels, **options)

    sets = images(layout.rows()), None if layout.test is None else images(layout.test)
    return Splits(
        train=sets[0],
        test=sets[1],
        held_out=layout.held_out(seed),
        class_names=layout.class_names,
        identity=_identity(listing, sets, layout),
        notes=tuple(f"data.path: {note}" for note in (*layout.notes, *passed_over(listing), *skip_notes(skipped))),
        skipped=tuple(skipped.values()),
        val_images=layout.val_images,
    )


def _check(path: Path | str | None) -> Path:
    if path is None:
        raise ValueError("data=folder needs a folder of images: data.path=DIR")
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path={root}: there is no such folder{looked_in(root)}")
    if not root.is_dir():
        raise ValueError(f"data.path={root}: is a file; data=folder reads a folder of images, data=array an .npz")
    return root


def _too_few(listing: Listing, usable: int, skipped: dict[str, str]) -> str:
    found = "only one image" if usable == 1 else "no image"
    if skipped:
        seen = f"{len(skipped):,} cannot be read, e.g. {next(iter(skipped.values()))}"
    else:
        seen = "; ".join(passed_over(listing)) or "the folder is empty"
    if is_packed(listing.root):
        return f"data.path={listing.root}: is a packed folder; read it with data=packed"
    kinds = " ".join(sorted(EXTENSIONS))
    return f"data.path={listing.root}: {found} ({seen}); SimCLR needs at least 2, named {kinds}"


def _identity(listing: Listing, sets: Sequence[FolderImages | None], layout: Layout) -> str | Callable[[], str]:
    """The fingerprint, or a function that returns it: it differs when files are added, removed, renamed or changed.

    Samples of the files are read now. Sizes from an earlier run's listing may have changed since: they are read when
    the fingerprint is needed, since a million files take seconds and the start of a run should not wait for them.
    """
    root = listing.root
    samples = [None if images is None else _samples(root, images.names) for images in sets]
    known = None if listing.cached else dict(zip(listing.names, listing.sizes, strict=True))

    def fingerprint() -> str:
        contents: list[Tensor | Sequence[str] | None] = []
        for images, sample in zip(sets, samples, strict=True):
            if images is None:
                contents.append(None)
                continue
            sizes = sizes_now(root, images.names) if known is None else [known[name] for name in images.names]
            contents += [images.names, images.labels, torch.tensor(sizes), sample]
        return digest("folder", *contents, *layout.val_names())

    return fingerprint if listing.cached else fingerprint()


def _samples(root: Path, names: Sequence[str]) -> Tensor:
    """(m,) int64 `_sample` of files at even distances."""
    return torch.tensor(list(in_threads(_sample, [root / names[index] for index in spread(len(names))])))


def _sample(path: Path) -> int:
    """CRC-32 of a file's first and last bytes."""
    try:
        with path.open("rb") as file:
            checksum = crc32(file.read(SAMPLE_BYTES))
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - SAMPLE_BYTES))
            return crc32(file.read(SAMPLE_BYTES), checksum)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}; {MEND}") from None
