"""`data=folder`: a folder of image files, with or without class folders.

DIR/cat/1.jpg  DIR/dog/2.jpg                labelled; a seeded fifth is held aside as test
DIR/train/cat/1.jpg  DIR/val/cat/2.jpg      labelled, with its own test part (test, val, valid, validation)
DIR/1.jpg  DIR/2.jpg                        not labelled; so is a mixture of files and folders
"""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, final
from zlib import crc32

import torch
from torch import Tensor

from simclr_lightning.data.decode import (
    MAX_PIXELS,
    PILLOW_LIMIT,
    ImageError,
    check_header,
    decode,
    quiet,
    read_image,
)
from simclr_lightning.data.images import PackedNames, Splits, choose_held_out, digest
from simclr_lightning.data.layout import Layout, Part, lay_out
from simclr_lightning.data.listing import EXTENSIONS, Listing, list_images

# Files looked into at the start. More would make a set of a million files wait for minutes; what is wrong
# with the others is found, and named, when they are loaded.
CHECKED = 10_000
SAMPLE_BYTES = 4096  # of each checked file's start and of its end, for the fingerprint
NAMED = 20  # skipped files named in the notes
HANDFUL = 32  # files a thread takes at a time

OnCorrupt = Literal["fail", "skip"]
T = TypeVar("T")


@final
class FolderImages:
    """Images in files, decoded at every load.

    Args:
        root: the folder.
        names: file names relative to it, "/" between their parts.
        labels: (n,) int64, or None.
        max_pixels: larger images are refused before decoding.
        on_corrupt: what an error advises; with "skip" every file could be read at the start.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Tensor | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
        on_corrupt: OnCorrupt = "fail",
    ) -> None:
        assert labels is None or labels.shape == (len(names),), labels
        self.root = root
        self.names = names
        self.labels = labels
        self.tensor: Tensor | None = None
        self._max_pixels = max_pixels
        self._on_corrupt = on_corrupt

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Tensor:
        """The image at `index` as (3, H, W) uint8.

        Raises:
            ImageError: the file cannot be read as an image; the message names it.
        """
        try:
            return read_image(self.root / self.names[index], max_pixels=self._max_pixels)
        except ImageError as error:
            if self._on_corrupt == "skip":
                mend = "it could be read when the run started: check the disk, then resume"
            else:
                mend = MEND
            raise ImageError(f"{error}; {mend}") from None


MEND = "remove or replace it, or leave such files out with data.dataset.on_corrupt=skip"


def folder(
    path: Path | str | None,
    *,
    on_corrupt: OnCorrupt = "fail",
    max_skipped: int = 100,
    max_pixels: int = MAX_PIXELS,
    labels: bool = True,
    seed: int = 0,
) -> Splits:
    """The images below a folder; formats, modes and orientation as in `read_image`.

    Every regular file below `path` whose name ends like an image's is found once, under its own name; hidden
    files and folders, links to folders and links out of `path` are passed over. Class folders are the first
    level below `path` (or below its train/), when every image is in one and there are at least two.

    A labelled folder without a part for testing gives a seeded fifth of every class as `test`. The held-out
    part is a seeded tenth of the training images, of every class its share. Class numbers follow the sorted
    names. The fingerprint holds names, labels, sizes and up to 8 kB of up to 10,000 files; not times, so that
    a copy of the folder is the same data.

    Args:
        path: the folder.
        on_corrupt: "fail" refuses a file that cannot be read as an image: at the start, where its size or one
            of up to 10,000 heads shows it, else when it is loaded. "skip" decodes every file once at the
            start (about 1 ms a photograph and core) and leaves those out that fail: they are counted, listed
            in `Splits.skipped`, and more than `max_skipped` are refused.
        max_skipped: see above; at least 0.
        max_pixels: an image with more counts as one that cannot be read; it is not decoded.
        labels: False ignores the class folders.
        seed: chooses the test part (where there is none) and the held-out part.

    Raises:
        ValueError: no such folder, fewer than two images, an option out of range.
        ImageError: a file cannot be read; the message names it.
    """
    listing = list_images(_check(path, on_corrupt, max_skipped, max_pixels))
    skipped: dict[str, str] = {}
    if on_corrupt == "fail":
        _check_heads(listing, max_pixels)
    else:
        skipped = _unreadable(listing, max_skipped, max_pixels)
    names = [name for name in listing.names if name not in skipped] if skipped else listing.names
    if len(names) < 2:
        raise ValueError(_too_few(listing, len(names), skipped))
    layout = lay_out(names, labels=labels, seed=seed)
    train, test = layout.train, layout.test
    if len(train.names) < 2:
        raise ValueError(f"{listing.root}: {len(train.names)} training image; SimCLR needs at least 2")

    def images(part: Part) -> FolderImages:
        packed = PackedNames(part.names)
        return FolderImages(listing.root, packed, part.labels, max_pixels=max_pixels, on_corrupt=on_corrupt)

    return Splits(
        train=images(train),
        test=None if test is None else images(test),
        held_out=choose_held_out(len(train.names), train.labels, seed=seed),
        class_names=layout.class_names,
        fingerprint=_fingerprint(listing, layout),
        notes=tuple(f"data.path: {note}" for note in (*layout.notes, *_notes(listing, skipped))),
        skipped=tuple(skipped.values()),
    )


def _check(path: Path | str | None, on_corrupt: str, max_skipped: int, max_pixels: int) -> Path:
    if path is None:
        raise ValueError("data=folder needs a folder of images: data.path=DIR")
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"data.path={root}: there is no such folder; check the spelling")
    if not root.is_dir():
        raise ValueError(f"data.path={root}: is a file; data=folder reads a folder of images, data=array an .npz")
    if on_corrupt not in ("fail", "skip"):
        raise ValueError(f"data.dataset.on_corrupt={on_corrupt}: must be fail or skip")
    if max_skipped < 0:
        raise ValueError(f"data.dataset.max_skipped={max_skipped}: must be at least 0")
    if not 1 <= max_pixels <= PILLOW_LIMIT:
        raise ValueError(f"data.dataset.max_pixels={max_pixels}: must be from 1 to {PILLOW_LIMIT:,}")
    return root


def _spread(count: int) -> range:
    """Up to CHECKED indices, at even distances."""
    return range(0, count, -(-count // CHECKED) or 1)


def _in_threads(function: Callable[[Path], T], paths: Sequence[Path]) -> Generator[T, None, None]:
    """Map over files with threads (reading and decoding release Python's lock), in order."""
    count = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as threads:
        # Only a few handfuls are under way at a time, so that an early end costs little.
        for start in range(0, len(paths), 4 * count * HANDFUL):
            ends = range(start, min(len(paths), start + 4 * count * HANDFUL), HANDFUL)
            handfuls = [paths[at : at + HANDFUL] for at in ends]
            for results in threads.map(lambda handful: [function(path) for path in handful], handfuls):
                yield from results


def _error(function: Callable[[Path, int], object], max_pixels: int, path: Path) -> str | None:
    """The message of the `ImageError` that a file gives, else None."""
    try:
        function(path, max_pixels)
    except ImageError as error:
        return str(error)
    return None


def _check_heads(listing: Listing, max_pixels: int) -> None:
    """Raise for files that their size or head shows to be unreadable."""
    empty = [index for index, size in enumerate(listing.sizes) if size == 0]
    chosen = sorted({*_spread(len(listing.names)), *empty[:CHECKED]})
    paths = [listing.root / listing.names[index] for index in chosen]
    with quiet():
        errors = [e for e in _in_threads(partial(_error, check_header, max_pixels), paths) if e is not None]
    if errors:
        more = f" ({len(errors):,} of {len(paths):,} files looked into are like that)" if len(errors) > 1 else ""
        raise ImageError(f"{errors[0]}{more}; {MEND}")


def _unreadable(listing: Listing, max_skipped: int, max_pixels: int) -> dict[str, str]:
    """Name -> "path: reason" of every file that does not decode.

    Raises:
        ValueError: they are more than `max_skipped`.
    """
    skipped: dict[str, str] = {}
    paths = [listing.root / name for name in listing.names]
    with quiet(), closing(_in_threads(partial(_error, decode, max_pixels), paths)) as errors:
        for name, error in zip(listing.names, errors, strict=True):
            if error is not None:
                skipped[name] = error
            if len(skipped) > max_skipped:
                break
        else:
            return skipped
    first = "\n  ".join([*skipped.values()][:3])
    raise ImageError(
        f"more than data.dataset.max_skipped={max_skipped} files cannot be read as images:\n  {first}\n"
        "mend or remove them, or raise data.dataset.max_skipped"
    )


def _too_few(listing: Listing, usable: int, skipped: dict[str, str]) -> str:
    found = "only one image" if usable == 1 else "no image"
    if skipped:
        seen = f"{len(skipped):,} cannot be read, e.g. {next(iter(skipped.values()))}"
    else:
        seen = "; ".join(_passed_over(listing)) or "the folder is empty"
    kinds = " ".join(sorted(EXTENSIONS))
    return f"data.path={listing.root}: {found} ({seen}); SimCLR needs at least 2, named {kinds}"


def _passed_over(listing: Listing) -> list[str]:
    """One line for each kind of entry that is not among the images."""
    kinds = (
        (listing.others, "not named like images"),
        (listing.outside, "links that lead out of data.path"),
        (listing.folder_links, "links to folders, which are not followed"),
        (listing.broken, "links that lead nowhere"),
        (listing.repeated, "further names of the same files"),
    )
    return [f"{len(names):,} passed over: {what} (e.g. {names[0]})" for names, what in kinds if names]


def _notes(listing: Listing, skipped: dict[str, str]) -> list[str]:
    notes = _passed_over(listing)
    if skipped:
        notes.append(f"{len(skipped):,} files cannot be read as images and are skipped:")
        notes += [*skipped.values()][:NAMED]
        if len(skipped) > NAMED:
            notes.append(f"... and {len(skipped) - NAMED:,} more")
    return notes


def _fingerprint(listing: Listing, layout: Layout) -> str:
    """Differs when files are added, removed, renamed or changed; cheap for a million files."""
    size = dict(zip(listing.names, listing.sizes, strict=True))
    parts: list[Tensor | list[str] | None] = []
    for part in (layout.train, layout.test):
        if part is None:
            parts.append(None)
            continue
        paths = [listing.root / part.names[index] for index in _spread(len(part.names))]
        samples = torch.tensor(list(_in_threads(_sample, paths)))
        parts += [part.names, part.labels, torch.tensor([size[name] for name in part.names]), samples]
    return digest("folder", *parts)


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
