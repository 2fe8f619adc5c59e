"""Read the samples of a TIFF page of any depth and layout; Pillow decompresses its strips and tiles.

Legend: H rows, W columns, S samples a pixel, N strips or tiles of a plane.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from simclr_lightning.data.disk.tiff.kinds import PALETTE, PREDICTED
from simclr_lightning.data.disk.tiff.page import FLOAT, MAGIC, SIGNED, Page, Tag

MOST_PADDING = 4  # times the pixels of the image that its tiles may have, or
LEAST_PIXELS = 1 << 24  # ... so many pixels


def read_samples(file: BinaryIO, page: Page) -> NDArray[Any]:
    """Return the samples of a page as (H, W, S) of the file's type; a palette's are the colors looked up.

    Raises:
        ValueError, OSError: the file is damaged.
    """
    planes = page.number(Tag.BANDS) if page.number(Tag.PLANAR) == 2 else 1
    parts = [*_planes(file, page, planes)]
    image_HWS = parts[0] if planes == 1 else np.concatenate(parts, axis=2)
    if page.number(Tag.PHOTOMETRIC) == PALETTE:
        return np.array(page.tags[Tag.COLOR_MAP], np.uint16).reshape(3, -1).T[image_HWS[:, :, 0]]
    # A fourth band that is neither color nor alpha
    return image_HWS[:, :, :3] if page.extra == (0,) else image_HWS


def _dtype(page: Page) -> np.dtype[Any]:
    kind = {SIGNED: "i", FLOAT: "f"}.get(page.number(Tag.FORMAT), "u")
    size = next(size for size in (1, 2, 4, 8) if page.number(Tag.BITS) <= 8 * size)
    return np.dtype(f"{MAGIC[page.magic]}{kind}{size}")


def _planes(file: BinaryIO, page: Page, planes: int) -> Iterator[NDArray[Any]]:
    """Yield every plane (one of all bands, or one of each) as (H, W, S or 1)."""
    width, height = page.size
    tiled, samples = Tag.TILE_OFFSETS in page.tags, page.number(Tag.BANDS) // planes
    if tiled:
        rows, columns = page.number(Tag.TILE_LENGTH), page.number(Tag.TILE_WIDTH)
    else:
        rows, columns = min(height, int(page.tags.get(Tag.STRIP_ROWS, (height,))[0])), width
    if rows < 1 or columns < 1:
        raise ValueError(f"strips or tiles of {columns} x {rows} pixels")
    down, across = -(-height // rows), -(-width // columns)
    if tiled and down * rows * across * columns > max(MOST_PADDING * width * height, LEAST_PIXELS):
        raise ValueError(f"tiles of {columns} x {rows} pixels")
    offsets = page.tags.get(Tag.TILE_OFFSETS if tiled else Tag.STRIP_OFFSETS, ())
    counts = page.tags.get(Tag.TILE_BYTES if tiled else Tag.STRIP_BYTES, (page.bytes,) * len(offsets))
    count = down * across
    if min(len(offsets), len(counts)) < planes * count:
        raise ValueError(f"{len(offsets)} strips or tiles instead of {planes * count}")
    row_bytes = -(-columns * samples * page.number(Tag.BITS) // 8)
    for first in range(0, planes * count, count):
        places = [*zip(offsets[first : first + count], counts[first : first + count], strict=True)]
        raw = _decompressed(file, page, places, rows, down * rows * across if tiled else height, row_bytes)
        plane = _numbers(raw, page, columns, samples)
        if tiled:
            tiles = plane.reshape(down, across, rows, columns, samples).swapaxes(1, 2)
            plane = tiles.reshape(down * rows, across * columns, samples)[:height, :width]
        yield plane


def _decompressed(
    file: BinaryIO, page: Page, places: list[tuple[float, float]], rows: int, height: int, row_bytes: int
) -> NDArray[np.uint8]:
    """Return the N strips or tiles at `places` below each other, as (height, row_bytes).

    Where they are compressed, Pillow reads them as the strips of an 8-bit gray TIFF, `rows` rows each.
    """
    stored = page.number(Tag.COMPRESSION) == page.number(Tag.FILL_ORDER) == 1
    wanted = [min(rows, height - rows * number) * row_bytes for number in range(len(places))]
    counts = [min(int(count), size if stored else page.bytes) for (_, count), size in zip(places, wanted, strict=True)]
    if sum(counts) > page.bytes + height * row_bytes:
        raise ValueError("strips or tiles that overlap")
    data = [_read(file, int(offset), count) for (offset, _), count in zip(places, counts, strict=True)]
    if stored:
        if any(len(part) < size for part, size in zip(data, wanted, strict=True)):
            raise ValueError("a strip or tile is cut short")
        return np.frombuffer(b"".join(data), np.uint8).reshape(height, row_bytes)
    sizes = [len(part) for part in data]
    tags = {
        Tag.WIDTH: [row_bytes],
        Tag.LENGTH: [height],
        Tag.BITS: [8],
        Tag.COMPRESSION: [page.number(Tag.COMPRESSION)],
        Tag.PHOTOMETRIC: [1],
        Tag.FILL_ORDER: [page.number(Tag.FILL_ORDER)],
        Tag.STRIP_OFFSETS: [*accumulate(sizes[:-1], initial=8)],
        Tag.BANDS: [1],
        Tag.STRIP_ROWS: [rows],
        Tag.STRIP_BYTES: sizes,
    }
    directory = _directory(tags, 8 + sum(sizes))
    head = b"II*\0" + struct.pack("<I", 8 + sum(sizes))
    return np.array(TiffImagePlugin.TiffImageFile(BytesIO(b"".join([head, *data, directory]))))


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _directory(tags: dict[Tag, list[int]], place: int) -> bytes:
    """Return a TIFF directory of 32-bit numbers that stands at byte `place` of its file."""
    entries, lists = struct.pack("<H", len(tags)), b""
    after = place + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        value = values[0] if len(values) == 1 else after + len(lists)
        entries += struct.pack("<HHII", tag, 4, len(values), value)
        lists += struct.pack(f"<{len(values)}I", *values) if len(values) > 1 else b""
    return entries + bytes(4) + lists


def _numbers(raw: NDArray[np.uint8], page: Page, columns: int, samples: int) -> NDArray[Any]:
    """Return the rows of one strip or tile as (rows, columns, samples) numbers, in the machine's byte order."""
    bits, dtype, shape = page.number(Tag.BITS), _dtype(page), (len(raw), columns, samples)
    predictor = page.number(Tag.PREDICTOR) if page.number(Tag.COMPRESSION) in PREDICTED else 1
    if bits not in (8, 16, 32, 64):
        if predictor != 1:
            raise ValueError(f"predictor {predictor} with {bits} bits")
        return _unpacked(raw, bits, columns * samples).astype(dtype.newbyteorder("=")).reshape(shape)
    if predictor == 3 and dtype.kind == "f":
        # The bytes of a row are differences; first come the most significant bytes of all its numbers.
        whole = np.cumsum(raw.reshape(len(raw), -1, samples), axis=1, dtype=np.uint8)
        planes = whole.reshape(len(raw), bits // 8, -1).swapaxes(1, 2)
        return np.ascontiguousarray(planes).view(dtype.newbyteorder(">")).reshape(shape).astype(dtype.newbyteorder("="))
    values = raw.view(dtype).astype(dtype.newbyteorder("=")).reshape(shape)
    if predictor == 2:
        # Differences between neighbors, modulo 2 to the power of the bits, whatever the numbers' type.
        unsigned = np.dtype(f"u{bits // 8}")
        return np.cumsum(values.view(unsigned), axis=1, dtype=unsigned).view(values.dtype)
    if predictor != 1:
        raise ValueError(f"predictor {predictor}")
    return values


def _unpacked(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[Any]:
    """Return `count` numbers a row, of 1 to 16 bits each and packed without gaps, the most significant bit first."""
    start = np.arange(count) * bits
    at, shift = start >> 3, (24 - bits - (start & 7)).astype(np.uint32)
    padded = np.pad(raw, ((0, 0), (0, 2))).astype(np.uint32)
    words = padded[:, at] << 16 | padded[:, at + 1] << 8 | padded[:, at + 2]
    return words >> shift & np.uint32((1 << bits) - 1)
