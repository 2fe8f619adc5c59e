"""`pack`: copy a folder of images into shards of small JPEGs, which are read and decoded in a fraction of the time."""

import errno
import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from simclr_lightning.data.disk.decode import MAX_PIXELS, ImageError, decode, quiet
from simclr_lightning.data.disk.layout import lay_out
from simclr_lightning.data.disk.listing import Listing, list_images, passed_over
from simclr_lightning.data.disk.progress import counted
from simclr_lightning.data.disk.shards import INDEX, SAMPLES, ShardWriter, is_packed, write_index
from simclr_lightning.data.disk.unreadable import OnCorrupt, in_threads, too_many
from simclr_lightning.data.paths import looked_in
from simclr_lightning.files import in_the_way, undone_if_ended

JPEG_SIDE = 65_500  # pixels: the longest side that the encoder accepts
ESTIMATED_AFTER = 1_000  # images, from whose JPEGs the size of all is estimated


@dataclass(frozen=True)
class Packed:
    """The counts of what `pack` wrote: images, classes (0 without labels), shards, bytes; and the images left out."""

    images: int
    classes: int
    shards: int
    bytes: int
    skipped: tuple[str, ...]


def pack(
    images: Path,
    out: Path,
    *,
    short_side: int = 256,
    quality: int = 90,
    on_corrupt: OnCorrupt = "fail",
    max_skipped: int = 100,
    max_pixels: int = MAX_PIXELS,
    full_scale: float | None = None,
) -> Packed:
    """Write a packed folder; the same images give the same bytes.

    Each image is decoded as in `read_image`. If its short side is longer than `short_side`, it is resized to that side
    (bicubic, antialiased). It is encoded as JPEG, with one channel if it is gray. File names stay the same, and so do
    classes and parts.

    Args:
        images: a folder of images, with class folders or without.
        out: a folder that does not exist, or is empty. If packing fails, the files written there are removed; if it is
            killed, the files left there have no index, and reading them is refused as not finished.
        short_side: pixels; at least 1.
        quality: of the JPEGs, 1 to 95.
        on_corrupt: "fail" or "skip" images that cannot be read.
        max_skipped: with "skip", the largest number of such images.
        max_pixels: a larger image counts as one that cannot be read.
        full_scale: the sample value of white in files of 16 bits and more, or None: see `read_image`.

    Raises:
        ValueError: there are no images, `out` is not empty, or the disk is full.
        ImageError: a file cannot be read; the message names it.
    """
    if not images.is_dir():
        what = "is a file" if images.exists() else f"there is no such folder of images{looked_in(images)}"
        raise ValueError(f"{images}: {what}")
    _check_out(out)
    listing = list_images(images)
    if not listing.names:
        what = "is a packed folder already" if is_packed(listing.root) else "no image"
        seen = "; ".join(passed_over(listing)) or "the folder is empty"
        raise ValueError(f"{images}: {what} ({seen})")
    encode = partial(_encoded, short_side=short_side, quality=quality, max_pixels=max_pixels, full_scale=full_scale)
    facts = {"short_side": short_side, "quality": quality}
    with _all_or_nothing(out), quiet(), closing(in_threads(encode, _paths(listing))) as encoded:
        return _write(out, listing, encoded, facts, max_skipped if on_corrupt == "skip" else None)


def shrunk(image: Tensor, short_side: int) -> Image.Image:
    """Return an image (3, H, W) uint8 with at most `short_side` pixels on its short side; gray for equal channels."""
    pixels = image.permute(1, 2, 0).numpy()
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
    else:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
    short = min(picture.size)
    if short <= short_side:
        return picture
    width, height = (round(side * short_side / short) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _encoded(path: Path, *, short_side: int, quality: int, max_pixels: int, full_scale: float | None) -> bytes | str:
    """The JPEG of an image file, or the reason why it cannot be made."""
    try:
        picture = shrunk(decode(path, max_pixels, full_scale), short_side)
    except ImageError as error:
        return str(error).replace("data.dataset.", "")
    if max(picture.size) > JPEG_SIDE:
        return f"{path}: a side is longer than the {JPEG_SIDE:,} pixels of a JPEG"
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _paths(listing: Listing) -> list[Path]:
    return [listing.root / name for name in listing.names]


def _check_out(out: Path) -> None:
    if found := in_the_way(out):
        raise ValueError(f"{out}: is {found}; OUT must be a new folder")
    if out.is_dir() and any(out.iterdir()):
        unfinished = is_packed(out) and not (out / INDEX).exists()
        what = "holds a packing that was not finished" if unfinished else "exists and is not empty"
        raise ValueError(f"{out}: {what}; remove it or give another OUT")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: its folder does not exist; make it first")


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[None]:
    """Make and lock the folder; if the body fails, remove the files that were written there."""
    made = not out.exists()

    def undo() -> None:
        for path in (out / INDEX, out / SAMPLES, *out.glob("shard-*.tar")):
            path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                out.rmdir()

    out.mkdir(exist_ok=True)
    with _held(out):
        try:
            with undone_if_ended(undo):
                yield
        except BaseException as error:
            undo()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(
                    f"{out}: the disk is full; free some space or give another OUT (the files written were removed)"
                ) from None
            raise


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Lock the folder for this process: two processes that pack into one folder would overwrite each other's files."""
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{out}: another process is packing there; wait for it, or give another OUT") from None
        _check_out(out)  # the other process may have finished a moment ago
        yield
    finally:
        os.close(handle)


def _write(
    out: Path, listing: Listing, encoded: Iterator[bytes | str], facts: dict[str, int], max_skipped: int | None
) -> Packed:
    label, classes = _labels_by_name(listing.names)
    skipped: list[str] = []
    with (
        ShardWriter(out) as shards,
        counted(f"packing {listing.root}", unit="images", total=len(listing.names)) as report,
    ):
        for number, (name, data) in enumerate(zip(listing.names, encoded, strict=True)):
            report(1)
            if isinstance(data, bytes):
                known = label.get(name)
                about = {"file": name, "class": None if known is None else classes[known], "label": known}
                shards.add(name, data, about)
            elif max_skipped is None:
                raise ImageError(f"{data}; remove or replace it, or leave such files out with on_corrupt=skip")
            else:
                skipped.append(data)
                if len(skipped) > max_skipped:
                    raise too_many(skipped, max_skipped, key="max_skipped")
            if number == ESTIMATED_AFTER:
                _check_space(out, shards.written / number * (len(listing.names) - number))
    index = shards.index()
    if not index.names:
        raise ValueError(f"{listing.root}: no readable image, e.g. {skipped[0]}")
    counts = {"images": len(index.names), "classes": len(classes), "shards": len(index.shard_sizes)}
    write_index(out, index, {**counts, **facts})
    return Packed(**counts, bytes=int(index.sizes.sum()), skipped=tuple(skipped))


def _labels_by_name(names: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class number of each labeled file, and the class names; none where `lay_out` refuses these folders."""
    try:
        layout = lay_out(names, labels=True, seed=0)
    except ValueError:  # all images are packed: the keys that decide are given when they are read
        return {}, ()
    label: dict[str, int] = {}
    for part in (layout.train, layout.val, layout.test):
        if part is not None and part.labels is not None:
            label |= dict(zip(part.names, part.labels.tolist(), strict=True))
    return {name: number for name, number in label.items() if number >= 0}, layout.class_names or ()


def _check_space(out: Path, needed: float) -> None:
    """Raise the error of a full disk early, when the estimated bytes do not fit."""
    if shutil.disk_usage(out).free < needed:
        raise OSError(errno.ENOSPC, f"about {needed / 1e9:.1f} GB are needed", str(out))
