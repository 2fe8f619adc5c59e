"""The size of an image from the first bytes of its file."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from simclr_lightning.data.disk.decode import FORMATS


def header_size(file: Path | BytesIO) -> tuple[int, int] | None:
    """Return (height, width) in pixels, before any rotation by EXIF; None when the header cannot be read.

    For threads: call it inside `quiet`.
    """
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.height, image.width
    # Damaged headers raise errors of almost any class; what is wrong with a file is reported when it is decoded.
    except Exception:
        return None
