"""Cut, flip and resize boxes of uint8 images: antialiased filters, results rounded to uint8.

Small images are resized as matrix products, all boxes at once. Their sums are exact: pixels are 8-bit numbers, the
filter weights multiples of 2**-15 (across) and 2**-12 (down), what lies between the two passes multiples of 1/8
level, so every partial sum fits the 24 bits of a float32. The order of summation, the batch and the device then
change nothing, and the result is within one level of Pillow's. Larger images go one by one through torch's own
uint8 resize, integer arithmetic with Pillow's filters, several times faster there.

Shapes: N images, V = 2 views, R = V N rows (view 0 first), S side of the result, H and W of the image,
I samples of a line, O samples wanted.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_lightning.views.kernels import has_float64, onto
from simclr_lightning.views.sampling import VIEWS, Crops

__all__ = ["resize_crops", "resize_weights"]

_ACROSS_BITS = 15
_DOWN_BITS = 12
_BETWEEN = 8.0  # parts of a level kept between the passes: with `_DOWN_BITS`, still exact
_TABLE_BYTES = 1 << 23  # tables of all boxes' filters up to here: 32 pixels to 32 take 4.3 MB
# Values of the images in one batch of products: what a core's cache holds, or a device's memory can spare.
_CHUNK_VALUES = 1 << 18
_CHUNK_VALUES_DEVICE = 1 << 25


def resize_crops(images: Tensor, crops: Crops, size: int, interpolation: str) -> Tensor:
    """Cut both crops of each image, flip them and resize them to S x S.

    Args:
        images: (N, 3, H, W) uint8.
        crops: 2 N boxes and flips, on the CPU; row v N + n is view v of image n.
        size: S.
        interpolation: "bicubic" (a = -0.5) or "bilinear", both antialiased.

    Returns:
        (N, 2, 3, S, S) uint8 on the device of `images`. Every crop depends on its image and its row alone.
    """
    count, _, height, width = images.shape
    out = torch.empty((count, VIEWS, 3, size, size), dtype=torch.uint8, device=images.device)
    on_cpu = images.device.type == "cpu"
    if on_cpu and not (_has_table(height, size) and _has_table(width, size)):
        return _resize_singly(images, crops, size, interpolation, out)
    chunk = max(1, (_CHUNK_VALUES if on_cpu else _CHUNK_VALUES_DEVICE) // (3 * max(height, size) * max(width, size)))
    box_VN4 = crops.box.unflatten(0, (VIEWS, count))
    flip_VN = crops.flip.unflatten(0, (VIEWS, count))
    for at in range(0, count, chunk):
        part = slice(at, at + chunk)
        _resize_batch(images[part], box_VN4[:, part], flip_VN[:, part], interpolation, out[part])
    return out


def _resize_singly(images: Tensor, crops: Crops, size: int, interpolation: str, out: Tensor) -> Tensor:
    """Resize box by box with torch's integer kernel, which is on the CPU only."""
    count = len(images)
    rows = zip(crops.box.tolist(), crops.flip.tolist(), strict=True)
    for row, ((top, left, h, w), flip) in enumerate(rows):
        box = images[row % count, None, :, top : top + h, left : left + w]
        if (h, w) != (size, size):
            box = F.interpolate(box, size=(size, size), mode=interpolation, antialias=True)
        out[row % count, row // count].copy_(box[0].flip(2) if flip else box[0])
    return out


def _resize_batch(images: Tensor, box_VN4: Tensor, flip_VN: Tensor, name: str, out: Tensor) -> None:
    """Resize all boxes as two batched matrix products, into (N, V, 3, S, S)."""
    count, _, height, width = images.shape
    size, device = out.shape[-1], images.device
    # Where float32 products may be cut to fewer bits (TF32, bfloat16), float64 holds the same exact sums. Apple's GPUs
    # cut none, and have no float64.
    exact = (device.type == "cpu" and torch.get_float32_matmul_precision() == "highest") or not has_float64(device)
    dtype = torch.float32 if exact else torch.float64
    top_VN, left_VN, h_VN, w_VN = box_VN4.unbind(2)
    across = _filters(left_VN, w_VN, flip_VN, _Line(width, size, name, _ACROSS_BITS, _BETWEEN), device, dtype)
    line = _Line(height, size, name, _DOWN_BITS, 1.0 / _BETWEEN)
    down = _filters(top_VN, h_VN, torch.zeros_like(flip_VN), line, device, dtype)
    # A row of each channel side by side: both products then read and write whole, contiguous matrices.
    x_NH3W = torch.empty((count, height, 3, width), dtype=dtype, device=device).copy_(images.transpose(1, 2))
    y_NH3S, z_NS3S = x_NH3W.new_empty(count, height, 3, size), x_NH3W.new_empty(count, size, 3, size)
    level_NS3S = torch.empty_like(z_NS3S, dtype=torch.int16)
    with torch.autocast(device.type, enabled=False):
        for view in range(VIEWS):
            torch.bmm(x_NH3W.flatten(1, 2), across[view].transpose(1, 2), out=y_NH3S.flatten(1, 2))
            y_NH3S.round_().clamp_(0.0, 255.0 * _BETWEEN)
            torch.bmm(down[view], y_NH3S.flatten(2), out=z_NS3S.flatten(2))
            # By way of int16: float to uint8 is five times slower on the CPU.
            level_NS3S.copy_(z_NS3S.round_().clamp_(0.0, 255.0))
            out[:, view].copy_(level_NS3S.transpose(1, 2))


class _Line(NamedTuple):
    """An axis to resize: samples before and after, filter, the weights' bits, and a power of two to scale by."""

    size_in: int
    size_out: int
    name: str
    bits: int
    scale: float


def _has_table(size_in: int, size_out: int) -> bool:
    return 4 * size_in * (size_in + 1) * size_in * size_out <= _TABLE_BYTES


def _filters(
    start_VN: Tensor,
    length_VN: Tensor,
    flip_VN: Tensor,
    line: _Line,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the filters of boxes along one axis: (V, N, O, I)."""
    size_in, size_out, name, bits, scale = line
    if _has_table(size_in, size_out):
        # Boxes are numbered by length, then start; see `_table`.
        shorter = size_in * (length_VN - 1) - (length_VN - 1) * (length_VN - 2) // 2
        entry_VN = 2 * (shorter + start_VN) + flip_VN
        table = _table(line, device, dtype)
        return table.index_select(0, onto(entry_VN.flatten(), device)).view(*start_VN.shape, size_out, size_in)
    where = device if has_float64(device) else torch.device("cpu")
    start, length, flip = (onto(x_VN.flatten(), where) for x_VN in (start_VN, length_VN, flip_VN))
    weights = resize_weights(start, length, size_in, size_out, name, bits)
    weights = torch.where(flip[:, None, None], weights.flip(1), weights)
    return weights.mul_(scale).to(dtype).to(device).view(*start_VN.shape, size_out, size_in)


@lru_cache(maxsize=16)
def _table(line: _Line, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the filters of every box of a line, unflipped and flipped, (size_in (size_in + 1), O, I)."""
    size_in, size_out, name, bits, scale = line
    boxes = [(start, length) for length in range(1, size_in + 1) for start in range(size_in - length + 1)]
    start, length = torch.tensor(boxes, device="cpu").T
    weights = resize_weights(start, length, size_in, size_out, name, bits).mul_(scale)
    return torch.stack([weights, weights.flip(1)], dim=1).flatten(0, 1).to(dtype).to(device)


def resize_weights(start: Tensor, length: Tensor, size_in: int, size_out: int, name: str, bits: int) -> Tensor:
    """Return the antialiased filters that resize [start, start + length) of a line to `size_out` samples.

    Pillow's rule: the filter is stretched by the reduction, cut at the box's borders, and normalised.

    Args:
        start: (R,) int64, first sample of each box.
        length: (R,) int64, samples of each box.
        size_in: samples I of the whole line.
        size_out: samples O wanted.
        name: "bicubic" (a = -0.5) or "bilinear".
        bits: the weights are multiples of 2**-bits.

    Returns:
        (R, O, I) float64, rows summing to exactly 1, zero outside of the box.
    """
    start_R11, length_R11 = start.double()[:, None, None], length.double()[:, None, None]
    scale_R11 = length_R11 / size_out
    at_I = torch.arange(size_in, device=start.device) + 0.5
    centre_O1 = torch.arange(size_out, device=start.device)[:, None] + 0.5
    x_ROI = (at_I - start_R11) - centre_O1 * scale_R11
    x_ROI.div_(scale_R11.clamp(min=1.0)).abs_()
    w_ROI = _bicubic(x_ROI) if name == "bicubic" else (1.0 - x_ROI).clamp_(min=0.0)
    w_ROI.mul_((at_I > start_R11) & (at_I < start_R11 + length_R11))
    one = float(1 << bits)
    w_ROI.mul_(one / w_ROI.sum(dim=2, keepdim=True)).round_()
    # What rounding lost goes to the largest weight, so that a constant line stays constant.
    lost_RO1 = one - w_ROI.sum(dim=2, keepdim=True)
    return w_ROI.scatter_add_(2, w_ROI.argmax(dim=2, keepdim=True), lost_RO1).div_(one)


def _bicubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Evaluate the cubic convolution kernel at x >= 0, with the a of Pillow's and TensorFlow's resize."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
