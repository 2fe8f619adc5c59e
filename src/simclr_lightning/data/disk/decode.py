"""One image file -> (3, H, W) uint8 RGB, upright, or one clear error."""

import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import numpy as np
import torch
import torchvision.io  # its import registers the operator that _jpeg_operator looks up
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# What may be opened, whatever a file's name says. Pillow would otherwise try all its formats, and some of
# them (EPS) start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 64_000_000  # 192 MB decoded
PILLOW_LIMIT = 178_956_970  # Pillow itself refuses more than this

_TORCH_PLACE = re.compile(r"^\w+, \S+:\d+, ")


class ImageError(ValueError):
    """An image file that cannot be read; the message names it and says why."""


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The image at `path` as (3, H, W) uint8 RGB.

    The pixels are those of the first frame, turned upright by the EXIF orientation. Greyscale is given three
    equal channels; 16-bit greyscale keeps its full range (0 to 65535 becomes 0 to 255, rounded); palettes are
    looked up; CMYK is converted without a colour profile; alpha, also a palette's, is composited on white.
    Colour profiles are not applied. A file that is cut short is an error. A PNG's checksums are checked; a
    JPEG has none, so changed bytes inside its picture can go unnoticed.

    Args:
        path: a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM/PGM file.
        max_pixels: images with more pixels than this are refused before anything is decoded.

    Raises:
        ImageError: not such a file, damaged or cut short, too many pixels, or floating-point pixels.
    """
    with quiet():
        return decode(path, max_pixels)


def decode(path: Path | str, max_pixels: int) -> Tensor:
    """`read_image` for threads: run them inside one `quiet()`, which acts on the whole process."""
    return _decoded(lambda: Path(path).open("rb"), str(path), max_pixels)


def decode_bytes(data: bytes, name: str, max_pixels: int) -> Tensor:
    """`decode` of a file's contents; `name` is for the message of the `ImageError`."""
    return _decoded(lambda: BytesIO(data), name, max_pixels)


def _decoded(open_file: Callable[[], BinaryIO], name: str, max_pixels: int) -> Tensor:
    with _opened(open_file, name, max_pixels) as (file, image):
        jpeg = _jpeg_operator()
        # A plain JPEG goes through libjpeg directly: the same pixels in two thirds of the time.
        if jpeg and image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) == 1:
            file.seek(0)
            data = np.frombuffer(bytearray(file.read()), dtype=np.uint8)
            return jpeg(torch.from_numpy(data), torchvision.io.ImageReadMode.RGB.value, False)
        if image.format == "PNG":
            _check_png(file)
        upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(_to_rgb(upright))).permute(2, 0, 1)


def check_header(path: Path | str, max_pixels: int) -> None:
    """Raise the `ImageError` that the file's head calls for; decodes nothing. For threads, like `decode`."""
    with _opened(lambda: Path(path).open("rb"), str(path), max_pixels):
        pass


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: Pillow's are of odd metadata, which do not matter, and of size, checked apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(open_file: Callable[[], BinaryIO], name: str, max_pixels: int) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """Open a file of an allowed format and size; whatever goes wrong in the body is an `ImageError` too."""
    try:
        with open_file() as file:
            if file.seek(0, os.SEEK_END) == 0:
                raise ImageError(_message(name, "the file is empty (0 bytes)"))
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(name, image.size, max_pixels)
                yield file, image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(_message(name, f"not an image of a known format ({', '.join(FORMATS)})")) from None
    except Image.DecompressionBombError:
        raise ImageError(_message(name, f"more than {PILLOW_LIMIT:,} pixels")) from None
    except OSError as error:
        raise ImageError(_message(name, error.strerror or str(error) or "cannot be read")) from None
    # Decoders meet damaged files with errors of almost any class (struct.error, zlib.error, IndexError, ...).
    except Exception as error:
        # After its first line torch adds a stack; before the cause it puts the place in its own source.
        first = str(error).split("\n", 1)[0] or type(error).__name__
        raise ImageError(_message(name, "damaged: " + _TORCH_PLACE.sub("", first))) from None


def _message(name: str, reason: str) -> str:
    return f"{name}: {reason}"


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            _message(
                name, f"{width} x {height} = {width * height:,} pixels, above data.dataset.max_pixels={max_pixels:,}"
            )
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 when there is none or it cannot be understood."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    # Broken EXIF data raise almost anything; the pixels may still be fine.
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _check_png(file: BinaryIO) -> None:
    """Raise ValueError unless the checksums of the chunks that make the pixels hold; Pillow skips those."""
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", file.read(8))
        data, checksum = file.read(length), file.read(4)
        if kind[:1].isupper() and crc32(data, crc32(kind)).to_bytes(4, "big") != checksum:
            raise ValueError(f"the checksum of its {kind.decode('ascii', 'replace')} chunk is wrong")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB from any mode (see `read_image`)."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("pixels of more than 16 bits; convert the file to 8 or 16 bits")
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _jpeg_operator() -> Callable[[Tensor, int, bool], Tensor] | None:
    """torchvision's JPEG decoder, or None in builds without it.

    The operator itself: its wrapper in torchvision.io warns of its own retirement from 0.29 on.
    """
    try:
        operator: Callable[[Tensor, int, bool], Tensor] = torch.ops.image.decode_jpeg
    except (AttributeError, RuntimeError):
        return None
    return operator
