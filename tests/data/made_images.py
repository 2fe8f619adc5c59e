"""Image files written by hand, byte by byte, for the tests of the decoder; and values to write into them."""

import re
import struct
import zlib

import numpy as np
import pytest

from simclr_lightning.data import ImageError, read_image

# PNG's color types
GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
PNG_BANDS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGB_ALPHA: 4}
# Adam7: first row, first column, step of rows, step of columns of each of the seven passes
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def read(path, **options):
    """The image as (H, W, 3) uint8."""
    return read_image(path, **options).permute(1, 2, 0).numpy()


def refusal(path, **options):
    """The message of the error that reading the file raises, without the file's name."""
    with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: ") as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def outcome(path, **options):
    """The image as (H, W, 3) uint8, or the error's message."""
    try:
        return read(path, **options)
    except ImageError as error:
        return str(error)


def packed(values, bits):
    """Rows of numbers of `bits` bits each, the most significant bit first."""
    rows = values.reshape(len(values), -1, 1) >> np.arange(bits)[::-1] & 1
    return np.packbits(rows.reshape(len(values), -1).astype(np.uint8), axis=1)


def lzw(data):
    """TIFF's LZW without compressing: every byte is a code of 9 bits, and the table is cleared before it grows."""
    codes = [code for at in range(0, len(data), 250) for code in (256, *data[at : at + 250])]
    return packed(np.array([[*codes, 257]]), 9).tobytes()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, values, depth, color, *, interlaced=False, chunks=b""):
    """Write a PNG by hand, each row with another of the filters 0 (none), 1 (left) and 2 (above)."""

    def rows(part):
        above = None
        step = max(1, PNG_BANDS[color] * depth // 8)
        for number, row in enumerate(packed(part, depth)):
            filtered = row.copy()
            if number % 3 == 1:
                filtered[step:] -= row[:-step]
            if number % 3 == 2:
                filtered -= above
            above = row
            yield bytes([number % 3]) + filtered.tobytes()

    passes = [values[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [values]
    data = b"".join(row for part in passes if part.size for row in rows(part))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, color, 0, 0, interlaced)
    image = chunk(b"IHDR", head) + chunks + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + image)
    return path


def tiff(path, data, bits, width, height, *, order="<", bands=1, photometric=1, **more):
    """Write a TIFF of one strip by hand; `more` gives further tags as t123=(type, values)."""
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * bands),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", [8]),
        277: ("H", [bands]),
        278: ("I", [height]),
        279: ("I", [len(data)]),
        **{int(name[1:]): value for name, value in more.items()},
    }
    codes = {"H": 3, "I": 4, "f": 11}
    data += bytes(len(data) % 2)
    directory, overflow = 8 + len(data), b""
    after = directory + 2 + 12 * len(tags) + 4
    entries = struct.pack(f"{order}H", len(tags))
    for tag, (code, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place = struct.pack(f"{order}I", after + len(overflow))
            overflow += packed + bytes(len(packed) % 2)
        entries += struct.pack(f"{order}HHI", tag, codes[code], len(values)) + place
    magic = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(magic + struct.pack(f"{order}I", directory) + data + entries + bytes(4) + overflow)
    return path


def bmp(path, bits, width, height, rows, *, masks=(), palette=b""):
    """Write an uncompressed BMP whose first row is the top one; masks give the bits of red, green and blue."""
    more = struct.pack(f"<{len(masks)}I", *masks) + palette
    start = 14 + 40 + len(more)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, -height, 1, bits, 3 * bool(masks), len(rows), 0, 0, len(palette) // 4, 0
    )
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + more + rows)
    return path
