"""Random TIFF samples, and what they are as 8-bit RGB, computed by hand."""

import numpy as np

RNG = np.random.default_rng(0)
H, W = 21, 37
BANDS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "separated": 4}
TYPES = {
    "uint8": 255,
    "uint16": 65535,
    "uint32": 2**32 - 1,
    "uint64": 2**64 - 1,
    "int8": 127,
    "int16": 32767,
    "int32": 2**31 - 1,
    "float16": 1,
    "float32": 1,
    "float64": 1,
}


def random_samples(dtype, bands, white):
    if np.dtype(dtype).kind == "f":
        values = (RNG.random((H, W, bands)) * white).astype(dtype)
    else:
        values = RNG.integers(0, white, (H, W, bands), dtype=dtype, endpoint=True)
    values[0, 0], values[0, 1] = 0, white
    return values


def eight_bits(values, white, photometric="minisblack", alpha=None):
    """By hand: 0 to white is 0 to 255, rounded; ink multiplies; alpha is laid on white."""
    shares = values.astype(np.float64) / white
    color, opacity = shares[:, :, : BANDS[photometric]], shares[:, :, BANDS[photometric] :]
    if photometric == "miniswhite":
        color = 1 - color
    if photometric == "separated":
        color = (1 - color[:, :, :3]) * (1 - color[:, :, 3:])
    if alpha == "unassalpha":
        color = color * opacity
    if alpha:
        color = color + 1 - opacity
    return np.broadcast_to(np.floor(color * 255 + 0.5), (H, W, 3))
