"""Decode one image file to (3, H, W) uint8 RGB, upright, or raise one clear error."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torchvision.io  # its import registers the operator that _jpeg_operator looks up
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from simclr_lightning.data.disk import foreign, png
from simclr_lightning.data.disk.depth import Samples, UnsupportedImageError, to_rgb
from simclr_lightning.data.disk.tiff import kinds, samples
from simclr_lightning.data.disk.tiff.page import MAGIC, Page, Tag, first_page

# Pillow tries only these formats, whatever the file's name. Some of its other formats (EPS) start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112  # the EXIF tag
MAX_PIXELS = 64_000_000  # 192 MB decoded
PILLOW_LIMIT = 178_956_970  # Pillow itself refuses more than this

_TORCH_PLACE = re.compile(r"^\w+, \S+:\d+, ")


class ImageError(ValueError):
    """An image file that cannot be read; the message names the file and the cause."""


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS, full_scale: float | None = None) -> Tensor:
    """Return the image at `path` as (3, H, W) uint8 RGB.

    Of an animation or a file of several pages the first is read, turned upright by its EXIF orientation. Gray becomes
    three equal channels. Samples of more than 8 bits are scaled from 0 to white to 0 to 255, rounded; white is
    `full_scale`, or what the file records, or the largest value of the sample type (1 for floating point). Palettes
    are looked up, CMYK is converted without a color profile, alpha (also a palette's) is composited on white. Color
    profiles and gamma are not applied. docs/data.md lists every format and depth.

    A file that is cut short is an error. A PNG's checksums are checked. A JPEG has none, so changed bytes inside its
    picture can go unnoticed.

    Args:
        path: a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM (PGM, PBM, PFM) file.
        max_pixels: images with more pixels than this are refused before they are decoded.
        full_scale: the sample value of white in files of 16 bits and more, such as 4095 for 12 bits in 16.

    Raises:
        ImageError: the file is not such an image, damaged, cut short, too large, or of a kind that is not read. An
            image whose samples reach no sixteenth of white is refused too, unless the file or `full_scale` says
            which value is white: it would be almost black.
        ValueError: `full_scale` is not above 0.
    """
    if full_scale is not None and not full_scale > 0:
        raise ValueError(f"full_scale={full_scale}: must be above 0")
    with quiet():
        return decode(path, max_pixels, full_scale)


def decode(path: Path | str, max_pixels: int, full_scale: float | None = None) -> Tensor:
    """`read_image` for threads: run them inside one `quiet()`, which acts on the whole process."""
    return _decoded(lambda: Path(path).open("rb"), str(path), max_pixels, full_scale)


def decode_bytes(data: bytes, name: str, max_pixels: int) -> Tensor:
    """`decode` of a file's contents; `name` is for the message of the `ImageError`."""
    return _decoded(lambda: BytesIO(data), name, max_pixels, None)


def _decoded(open_file: Callable[[], BinaryIO], name: str, max_pixels: int, full_scale: float | None) -> Tensor:
    with _opened(open_file, name, max_pixels) as (file, image):
        if isinstance(image, Page):
            rgb = to_rgb(samples.read_samples(file, image), kinds.meaning(image, full_scale))
            return _upright(_turnable(rgb, image.number(Tag.ORIENTATION)))
        jpeg = _jpeg_operator()
        # A plain JPEG goes through libjpeg directly: the same pixels in two thirds of the time.
        if jpeg and image.format == "JPEG" and image.mode in ("L", "RGB") and _orientation(image) == 1:
            file.seek(0)
            data = np.frombuffer(bytearray(file.read()), dtype=np.uint8)
            return jpeg(torch.from_numpy(data), torchvision.io.ImageReadMode.RGB.value, False)
        if image.format == "PNG":
            pixels = png.read(file, image, png.checked_head(file), full_scale)
            if pixels is not None:
                return _upright(_turnable(pixels, _orientation(image)))
        return _upright(image, full_scale)


def from_pil(image: Image.Image) -> Tensor:
    """Return a PIL image of any mode as (3, H, W) uint8 RGB, converted and turned upright as by `read_image`.

    Raises:
        ValueError: 16 bits or floating point whose value of white cannot be known.
    """
    try:
        return _upright(image)
    except UnsupportedImageError:
        raise ValueError(
            f"is a PIL image of mode {image.mode}, without a known value of white; make it 8 bits"
        ) from None


def check_header(path: Path | str, max_pixels: int) -> None:
    """Raise the `ImageError` that the start of a file calls for; decode nothing. For threads, like `decode`."""
    with _opened(lambda: Path(path).open("rb"), str(path), max_pixels):
        pass


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings: Pillow warns of odd metadata, which do not matter, and of size, which is checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _opened(
    open_file: Callable[[], BinaryIO], name: str, max_pixels: int
) -> Iterator[tuple[BinaryIO, ImageFile.ImageFile | Page]]:
    """Open a file of an allowed format, kind and size; every error of the body becomes an `ImageError` too.

    Yields the file, and its image by Pillow or the page of a TIFF that `tiff.samples` reads.
    """
    try:
        with open_file() as file:
            magic = file.read(4)
            if not magic:
                raise ImageError(_message(name, "the file is empty (0 bytes)"))
            if magic in MAGIC:
                page = first_page(file)
                kinds.check(page)
                if not kinds.is_pillows(page):
                    _check_size(name, page.size, max_pixels)
                    yield file, page
                    return
            file.seek(0)
            try:
                image = Image.open(file, formats=FORMATS)
            except UnidentifiedImageError:
                file.seek(0)
                unknown = f"not an image of a known format ({', '.join(FORMATS)})"
                raise ImageError(_message(name, foreign.described(file.read(foreign.HEAD_BYTES)) or unknown)) from None
            with image:
                _check_size(name, image.size, max_pixels)
                yield file, image
    except ImageError:
        raise
    except UnsupportedImageError as error:
        raise ImageError(_message(name, str(error))) from None
    except Image.DecompressionBombError:
        raise ImageError(_message(name, f"more than {PILLOW_LIMIT:,} pixels")) from None
    except OSError as error:
        raise ImageError(_message(name, error.strerror or f"damaged: {error}")) from None
    # Decoders raise errors of almost any class for damaged files (struct.error, zlib.error, IndexError, ...).
    except Exception as error:
        # After its first line torch adds a stack; before the cause it puts the place in its own source.
        first = str(error).split("\n", 1)[0] or type(error).__name__
        raise ImageError(_message(name, "damaged: " + _TORCH_PLACE.sub("", first))) from None


def _message(name: str, reason: str) -> str:
    return f"{name}: {reason}"


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        pixels = f"{width} x {height} = {width * height:,} pixels"
        raise ImageError(_message(name, f"{pixels}, above data.dataset.max_pixels={max_pixels:,}"))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 when there is none or it cannot be understood."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    # Broken EXIF data raise almost anything; the pixels may still be fine.
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _turnable(pixels: NDArray[np.uint8], orientation: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION] = orientation
    return image


def _upright(image: Image.Image, full_scale: float | None = None) -> Tensor:
    upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    return torch.from_numpy(np.array(_to_rgb(upright, full_scale))).permute(2, 0, 1)


def _to_rgb(image: Image.Image, full_scale: float | None) -> Image.Image:
    """Return RGB from any mode (see `read_image`). Deep TIFF and PNG are RGB already."""
    if image.mode == "F" or image.mode.startswith("I"):
        # A PGM records the value of white, and Pillow scales it to 16 bits. PFM is floating-point.
        pfm = image.mode == "F"
        white = (full_scale or 1) if pfm else 65535
        kind = Samples("PFM" if pfm else "PGM", "gray", white, certain=not pfm or full_scale is not None)
        return Image.fromarray(to_rgb(np.asarray(image)[:, :, None], kind))
    if image.has_transparency_data:
        white_background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white_background, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _jpeg_operator() -> Callable[[Tensor, int, bool], Tensor] | None:
    """Return torchvision's JPEG decoder, or None in builds without it.

    This is the operator itself: its wrapper in torchvision.io warns from 0.29 on that it will be removed.
    """
    try:
        operator: Callable[[Tensor, int, bool], Tensor] = torch.ops.image.decode_jpeg
    except (AttributeError, RuntimeError):
        return None
    return operator
