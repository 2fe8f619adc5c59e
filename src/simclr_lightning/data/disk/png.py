"""Read the PNG kinds whose pixels Pillow gets wrong: 16 bits a sample, and 1 to 4 bits with a transparent gray."""

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from simclr_lightning.data.disk.depth import Samples, to_rgb

GRAY, RGB, GRAY_ALPHA = 0, 2, 4  # the header's color types; RGB with alpha is 6
SIDES: Final = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}  # the upper, and the lower 8 bits of every sample


@dataclass(frozen=True)
class Head:
    """What a PNG file's chunks record: bits a sample, color type, and the transparent color's samples or none."""

    depth: int
    color: int
    transparent: tuple[int, ...]


def checked_head(file: BinaryIO) -> Head:
    """Return the head of a PNG file; check the checksums of the chunks that make the pixels, which Pillow skips.

    Raises:
        ValueError: a checksum is wrong; other errors: the file is damaged in another way.
    """
    file.seek(8)
    kind, chunks = b"", {b"tRNS": b""}
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", file.read(8))
        data, checksum = file.read(length), file.read(4)
        if kind[:1].isupper() and crc32(data, crc32(kind)).to_bytes(4, "big") != checksum:
            raise ValueError(f"the checksum of its {kind.decode('ascii', 'replace')} chunk is wrong")
        if kind in (b"IHDR", b"tRNS"):
            chunks[kind] = data
    depth, color = chunks[b"IHDR"][8:10]
    numbers = {GRAY: 1, RGB: 3}.get(color, 0) if chunks[b"tRNS"] else 0
    return Head(depth, color, struct.unpack(f">{numbers}H", chunks[b"tRNS"][: 2 * numbers]))


def read(file: BinaryIO, image: ImageFile.ImageFile, head: Head, full_scale: float | None) -> NDArray[np.uint8] | None:
    """Return the pixels, transparent ones white, as (H, W[, 3]) gray or RGB; None where Pillow gets them right.

    Args:
        file: the file that `image` was opened from.
        image: the PNG image, not loaded yet.
        head: from `checked_head`.
        full_scale: the sample value of white in 16 bits, or None for 65535.
    """
    if head.depth == 16:
        values_HWS = _sixteen_bits(file, image)
        kind = Samples(
            "16-bit PNG",
            "gray" if head.color in (GRAY, GRAY_ALPHA) else "RGB",
            full_scale or 65535,
            certain=full_scale is not None,
            alpha=None if head.color in (GRAY, RGB) else "straight",
        )
        rgb = to_rgb(values_HWS, kind)
        if head.transparent:
            rgb[(values_HWS == head.transparent).all(axis=2)] = 255
        return rgb
    if head.depth < 8 and head.transparent:
        # Pillow compares the transparent gray with pixels that it has already brought to 8 bits.
        image.info.pop("transparency", None)
        gray = np.array(image.convert("L"))
        gray[gray == head.transparent[0] * 255 // (2**head.depth - 1)] = 255
        return gray
    return None


def _sixteen_bits(file: BinaryIO, image: ImageFile.ImageFile) -> NDArray[Any]:
    """Return (H, W, S) uint16; Pillow's own result keeps the upper 8 bits only, except for gray."""
    raw = image.tile[0][3]
    if raw == "LA;16B":
        four = np.asarray(_as(image, "RGBA")).astype(np.uint16)  # gray and alpha of 2 bytes each
        return four[:, :, ::2] << 8 | four[:, :, 1::2]
    if raw not in SIDES:
        return np.asarray(image).astype(np.uint16)[:, :, None]
    upper = np.asarray(image).astype(np.uint16)
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as again:
        return upper << 8 | np.asarray(_as(again, SIDES[raw]))


def _as(image: ImageFile.ImageFile, raw: str) -> ImageFile.ImageFile:
    """The image, to be decoded with another of Pillow's raw modes."""
    image.tile = [ImageFile._Tile(codec, extents, offset, raw) for codec, extents, offset, _ in image.tile]
    return image
