"""Samples of any depth (8 to 64 bits, integer or floating point) -> (H, W, 3) uint8 RGB.

Legend: H rows, W columns, S samples a pixel (the color's 1, 3 or 4, then alpha where there is one).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Color = Literal["gray", "RGB", "CMYK"]
BANDS: Final[dict[Color, int]] = {"gray": 1, "RGB": 3, "CMYK": 4}

BLOCK = 1 << 18  # pixels converted at a time: it bounds the float64 copy of the samples
DARK = 16  # an image whose largest sample is below this part of white would be almost black
WAY_OUT = "set data.dataset.full_scale to the sample value of white (4095 for 12 bits), or save it with 8 bits"


class UnsupportedImageError(ValueError):
    """An undamaged image of a kind that is not read; the message names the kind and the way out, but not the file."""


@dataclass(frozen=True)
class Samples:
    """What the samples of one image mean.

    Attributes:
        kind: the file's kind, for messages, such as "16-bit TIFF".
        color: the color space of the first samples of a pixel.
        white: the sample value of full intensity (for CMYK: of full ink).
        certain: whether the file or the caller names `white`; otherwise it is the largest value of the sample type.
        inverted: whether gray runs from white (0) to black (`white`).
        alpha: None; or what the sample after the color's is: the opacity of a color that is stored as it is
            ("straight") or already multiplied by the opacity ("premultiplied").
    """

    kind: str
    color: Color
    white: float
    certain: bool
    inverted: bool = False
    alpha: Literal["straight", "premultiplied"] | None = None


def to_rgb(values_HWS: NDArray[Any], samples: Samples) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8: samples from 0 to white become 0 to 255, rounded; alpha is composited on white.

    Args:
        values_HWS: (H, W, S) integers or floating-point numbers.
        samples: what they mean.

    Raises:
        UnsupportedImageError: a sample is negative, not a number or above white; or no color sample reaches a
            sixteenth of white, and it is not certain which value is white.
    """
    _check_range(values_HWS, samples)
    rgb = np.empty((*values_HWS.shape[:2], 3), np.uint8)
    for rows in _row_blocks(*values_HWS.shape[:2]):
        shares = values_HWS[rows].astype(np.float64) / samples.white
        rgb[rows] = np.floor(_composited(shares, samples) * 255 + 0.5)
    return rgb


def _row_blocks(height: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, width))
    return (slice(at, at + step) for at in range(0, height, step))


def _composited(shares: NDArray[np.float64], samples: Samples) -> NDArray[np.float64]:
    """Shares of full intensity, (rows, W, S), as RGB or gray on white: (rows, W, 3 or 1), from 0 to 1."""
    color, alpha = np.split(shares, [BANDS[samples.color]], axis=2)
    if samples.color == "CMYK":
        color = (1 - color[:, :, :3]) * (1 - color[:, :, 3:])
    elif samples.inverted:
        color = 1 - color
    if samples.alpha is None:
        return color
    if samples.alpha == "straight":
        color = color * alpha
    # A premultiplied color may exceed its opacity in a damaged or rounded file.
    return np.minimum(color + 1 - alpha, 1)


def _check_range(values: NDArray[Any], samples: Samples) -> None:
    low, high, white = float(values.min()), float(values.max()), float(samples.white)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UnsupportedImageError(f"{samples.kind}: samples that are infinite or not a number; save it with 8 bits")
    if low < 0 or high > white:
        where = f"samples from {low:.10g} to {high:.10g}, outside 0 (black) to {white:.10g} (white)"
        raise UnsupportedImageError(f"{samples.kind}: {where}; {WAY_OUT}")
    brightest = float(values[:, :, : BANDS[samples.color]].max())
    if not samples.certain and 0 < brightest * DARK <= white:
        result = "almost white" if samples.inverted or samples.color == "CMYK" else "almost black"
        where = f"its samples reach {brightest:.10g} where full scale is {white:.10g}, which would be {result}"
        raise UnsupportedImageError(f"{samples.kind}: {where}; {WAY_OUT}")
