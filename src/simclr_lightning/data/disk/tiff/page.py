"""Parse the tags of a TIFF file's first page, as numbers."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, BinaryIO, Final

MAGIC: Final = {b"II*\0": "<", b"II+\0": "<", b"MM\0*": ">", b"MM\0+": ">"}  # "+": BigTIFF
MOST_TAGS, MOST_NUMBERS = 4096, 1 << 22  # what is read of a page: entries, and numbers of one entry
# TIFF's data types that hold numbers, as characters of `struct`
TYPES: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}


class Tag(IntEnum):
    """The tags that are read."""

    NEW_SUBFILE = 254
    WIDTH = 256
    LENGTH = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    BANDS = 277
    STRIP_ROWS = 278
    STRIP_BYTES = 279
    MAX_VALUE = 281
    PLANAR = 284
    PREDICTOR = 317
    COLOR_MAP = 320
    TILE_WIDTH = 322
    TILE_LENGTH = 323
    TILE_OFFSETS = 324
    TILE_BYTES = 325
    EXTRA = 338
    FORMAT = 339
    S_MAX_VALUE = 341
    DNG_VERSION = 50706


NUMBERS: Final = frozenset(Tag)
DEFAULT_ONE: Final = {
    *(Tag.BITS, Tag.COMPRESSION, Tag.FILL_ORDER, Tag.ORIENTATION),
    *(Tag.BANDS, Tag.PLANAR, Tag.PREDICTOR, Tag.FORMAT),
}
UNSIGNED, SIGNED, FLOAT, UNTYPED = 1, 2, 3, 4
FORMATS: Final = {UNSIGNED: "", SIGNED: "signed ", FLOAT: "floating-point ", UNTYPED: ""}


@dataclass(frozen=True)
class Page:
    """The tags of a TIFF file's first page.

    Attributes:
        magic: the file's first four bytes.
        tags: tag number -> its numbers, of the tags that hold numbers.
        bytes: the file's size.
    """

    magic: bytes
    tags: dict[int, tuple[float, ...]]
    bytes: int

    def number(self, tag: Tag) -> int:
        """Return the first number of a tag, or the default of the TIFF specification.

        Raises:
            ValueError: it is absent and has no default.
        """
        if tag not in self.tags and tag not in DEFAULT_ONE:
            raise ValueError(f"TIFF without the tag {tag.name} ({tag})")
        return int(self.tags.get(tag, (1,))[0])

    @property
    def size(self) -> tuple[int, int]:
        """Stored width and height in pixels."""
        return self.number(Tag.WIDTH), self.number(Tag.LENGTH)

    @property
    def kind(self) -> str:
        """The page's kind, for messages, such as "signed 16-bit TIFF"."""
        return f"{FORMATS.get(self.number(Tag.FORMAT), 'complex-number ')}{self.number(Tag.BITS)}-bit TIFF"

    @property
    def extra(self) -> tuple[int, ...]:
        """What the bands after the color's are: 0 unspecified, 1 premultiplied and 2 straight alpha."""
        return tuple(int(value) for value in self.tags.get(Tag.EXTRA, ()))


def first_page(file: BinaryIO) -> Page:
    """Return the first page of a TIFF file, one that starts with a `MAGIC`.

    Raises:
        ValueError: its tags are damaged.
    """
    file.seek(0)
    magic = file.read(4)
    order, big = MAGIC[magic], b"+" in magic
    size = file.seek(0, os.SEEK_END)

    def read(format: str, at: int, entries: int = 1) -> Iterator[tuple[Any, ...]]:
        count = entries * struct.calcsize(order + format)
        if at + count > size:
            raise ValueError("TIFF that is cut short, or whose tags are damaged")
        file.seek(at)
        return struct.iter_unpack(order + format, file.read(count))

    word, width = ("Q", 8) if big else ("I", 4)
    ((start,),) = read(word, width)
    ((count,),) = read("Q" if big else "H", start)
    tags: dict[int, tuple[float, ...]] = {}
    entries = read(f"HH{word}{width}s", start + (8 if big else 2), min(count, MOST_TAGS))
    for tag, kind, length, value in entries:
        if tag in NUMBERS and kind in TYPES and 0 < length <= MOST_NUMBERS and tag not in tags:
            code = f"{length}{TYPES[kind]}"
            if struct.calcsize(order + code) <= width:
                tags[tag] = struct.unpack_from(order + code, value)
            else:
                (tags[tag],) = read(code, *struct.unpack(order + word, value))
    return Page(magic, tags, size)
