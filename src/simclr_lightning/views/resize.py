"""Cut boxes out of uint8 images, flip them and resize them with antialiased filters, to uint8.

Every box is resized across (along its rows), then down (along its columns). Small images are resized batched, as matrix
products; on a CPU, the pass down sums only the lines whose weight is not 0. All sums are exact: pixels are 8-bit
numbers, filter weights are multiples of 2**-15 (across) and 2**-12 (down), and values between the two passes are
multiples of 1/8 level, so every partial sum fits the 24 bits of a float32. So the result does not depend on the order
of summation, the batch or the device, and it is within one level of Pillow's result. On a CPU, larger images go one by
one through torch's uint8 resize. It uses integer arithmetic with the same filters, and is several times faster there.

Shapes: N images, V = 2 views, R = V N rows (view 0 first), S side of the result, H and W of the image,
I samples of an input line, O samples of an output line.
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
_BETWEEN = 8.0  # values between the passes are multiples of 1/8 level; with `_DOWN_BITS` the sums stay exact
_TABLE_BYTES = 1 << 23  # largest table with the filters of all boxes; 32 to 32 pixels takes 4.3 MB
# Image values in one batch of products: as many as fit the cache of a CPU core, or a share of a GPU's memory.
_CHUNK_VALUES = 1 << 18
_CHUNK_VALUES_DEVICE = 1 << 24


def resize_crops(images: Tensor, crops: Crops, size: int, interpolation: str) -> Tensor:
    """Cut both crops of each image, flip them and resize them to S x S.

    Args:
        images: (N, 3, H, W) uint8.
        crops: 2 N boxes and flips, on the CPU; row v N + n is view v of image n.
        size: side S of the result in pixels.
        interpolation: "bicubic" (a = -0.5) or "bilinear", both antialiased.

    Returns:
        (N, 2, 3, S, S) uint8 on the device of `images`. Every crop depends only on its image, box and flip.
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
    """Resize box by box with torch's integer kernel, which exists for the CPU only."""
    count = len(images)
    rows = zip(crops.box.tolist(), crops.flip.tolist(), strict=True)
    for row, ((top, left, h, w), flip) in enumerate(rows):
        box = images[row % count, None, :, top : top + h, left : left + w]
        if (h, w) != (size, size):
            box = F.interpolate(box, size=(size, size), mode=interpolation, antialias=True)
        out[row % count, row // count].copy_(box[0].flip(2) if flip else box[0])
    return out


def _resize_batch(images: Tensor, box_VN4: Tensor, flip_VN: Tensor, name: str, out: Tensor) -> None:
    """Resize all boxes, first across and then down, into `out` (N, V, 3, S, S)."""
    count, _, height, width = images.shape
    size, device = out.shape[-1], images.device
    # Float64 gives the same exact sums where float32 products may be rounded to fewer bits (TF32, bfloat16). Apple GPUs
    # do not round them, and have no float64.
    exact = (device.type == "cpu" and torch.get_float32_matmul_precision() == "highest") or not has_float64(device)
    dtype = torch.float32 if exact else torch.float64
    top_VN, left_VN, h_VN, w_VN = box_VN4.unbind(2)
    line = _Line(width, size, name, _ACROSS_BITS, _BETWEEN)
    across_VNSW = _filters(left_VN, w_VN, flip_VN, line, device, dtype)
    x_NHW = torch.empty((count, 3 * height, width), dtype=dtype, device=device).copy_(images.flatten(1, 2))
    y_VNHS = x_NHW.new_empty(VIEWS, count, 3 * height, size)
    down = _Line(height, size, name, _DOWN_BITS, 1.0 / _BETWEEN)
    with torch.autocast(device.type, enabled=False):
        for view in range(VIEWS):
            torch.bmm(x_NHW, across_VNSW[view].transpose(1, 2), out=y_VNHS[view])
        y_R3HS = y_VNHS.round_().clamp_(0.0, 255.0 * _BETWEEN).view(-1, 3, height, size)
        if device.type == "cpu" and _has_table(height, size) and height <= 2 * size:  # few lines per sum
            z_R3SS = _take(y_R3HS.float(), _entry(top_VN, h_VN, height), down)
        else:
            filters_VNSH = _filters(top_VN, h_VN, torch.zeros_like(flip_VN), down, device, dtype)
            z_R3SS = y_R3HS.new_empty(len(y_R3HS), 3, size, size)
            for channel in range(3):
                torch.bmm(filters_VNSH.flatten(0, 1), y_R3HS[:, channel], out=z_R3SS[:, channel])
    # Via int16: converting float to uint8 directly is five times slower on a CPU.
    levels_R3SS = z_R3SS.round_().clamp_(0.0, 255.0).to(torch.int16)
    out.copy_(levels_R3SS.view(VIEWS, count, 3, size, size).transpose(0, 1))


class _Line(NamedTuple):
    """How to resize along one axis: I, O, the filter's name, the bits of its weights, and a power of 2 as a factor."""

    size_in: int
    size_out: int
    name: str
    bits: int
    scale: float


def _has_table(size_in: int, size_out: int) -> bool:
    return 4 * size_in * (size_in + 1) * size_in * size_out <= _TABLE_BYTES


def _entry(start_VN: Tensor, length_VN: Tensor, size_in: int) -> Tensor:
    """Return the row of each box in the table of all boxes, (R,) int64; boxes are sorted by length, then start."""
    return _first_entries(size_in).index_select(0, length_VN.flatten()).add_(start_VN.flatten())


@lru_cache(maxsize=64)
def _first_entries(size_in: int) -> Tensor:
    """Return the table row of the first box of each length 0 to I, (I + 1,) int64; the entry of length 0 is unused."""
    return torch.tensor([size_in * (n - 1) - (n - 1) * (n - 2) // 2 for n in range(size_in + 1)], device="cpu")


def _filters(
    start_VN: Tensor,
    length_VN: Tensor,
    flip_VN: Tensor,
    line: _Line,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the filters of boxes along one axis, (V, N, O, I)."""
    size_in, size_out, name, bits, scale = line
    if _has_table(size_in, size_out):
        entry_R = _entry(start_VN, length_VN, size_in).mul_(2).add_(flip_VN.flatten())
        return _table(line, device, dtype).index_select(0, onto(entry_R, device)).unflatten(0, start_VN.shape)
    where = device if has_float64(device) else torch.device("cpu")
    start, length, flip = (onto(x_VN.flatten(), where) for x_VN in (start_VN, length_VN, flip_VN))
    weights = resize_weights(start, length, size_in, size_out, name, bits)
    weights = torch.where(flip[:, None, None], weights.flip(1), weights)
    return weights.mul_(scale).to(dtype).to(device).view(*start_VN.shape, size_out, size_in)


def _take(y_R3IS: Tensor, entry_R: Tensor, line: _Line) -> Tensor:
    """Resize down as weighted sums of the lines whose weight is not 0, (R, 3, O, S).

    At 32 pixels seven of eight weights are 0, and on a CPU this is five times as fast as the product with the whole
    filters. The results are equal bit for bit, since all sums are exact.
    """
    rows, _, size_in, width = y_R3IS.shape
    index_EOK, weight_EOK = _taps(line)
    first_R311 = torch.arange(3 * rows, dtype=torch.int32, device="cpu").mul_(size_in).view(rows, 3, 1, 1)
    index_R3OK = index_EOK.index_select(0, entry_R)[:, None] + first_R311
    weight_R3OK = weight_EOK.index_select(0, entry_R)[:, None].expand_as(index_R3OK)
    lines, taps = y_R3IS.reshape(-1, width), index_EOK.shape[2]
    sums = F.embedding_bag(
        index_R3OK.view(-1, taps), lines, per_sample_weights=weight_R3OK.reshape(-1, taps), mode="sum"
    )
    return sums.view(rows, 3, line.size_out, width)


@lru_cache(maxsize=16)
def _taps(line: _Line) -> tuple[Tensor, Tensor]:
    """Return the nonzero part of every unflipped filter of a line: positions int32 and weights float32.

    Both are (I (I + 1) / 2, O, K), with K the most taps that a filter has.
    """
    table_EOI = _table(line, torch.device("cpu"), torch.float32)[::2]
    used_EOI = table_EOI != 0
    at_I = torch.arange(line.size_in, device="cpu")
    first_EO1 = torch.where(used_EOI, at_I, line.size_in).amin(dim=2, keepdim=True)
    taps = int((torch.where(used_EOI, at_I, -1).amax(dim=2, keepdim=True) - first_EO1).max()) + 1
    # A range of K positions that would end beyond the line starts earlier: its first weights are then 0.
    index_EOK = first_EO1.clamp(max=line.size_in - taps) + torch.arange(taps, device="cpu")
    return index_EOK.int(), table_EOI.gather(2, index_EOK)


@lru_cache(maxsize=16)
def _table(line: _Line, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the filters of every box of a line, unflipped and flipped in turn, (I (I + 1), O, I)."""
    size_in, size_out, name, bits, scale = line
    boxes = [(start, length) for length in range(1, size_in + 1) for start in range(size_in - length + 1)]
    start, length = torch.tensor(boxes, device="cpu").T
    weights = resize_weights(start, length, size_in, size_out, name, bits).mul_(scale)
    return torch.stack([weights, weights.flip(1)], dim=1).flatten(0, 1).to(dtype).to(device)


def resize_weights(start: Tensor, length: Tensor, size_in: int, size_out: int, name: str, bits: int) -> Tensor:
    """Return the antialiased filters that resize R boxes of a line to O samples, as Pillow does.

    The filter is stretched by the factor of reduction, cut off at the borders of the box, and normalized.

    Args:
        start: (R,) int64, the first sample of each box.
        length: (R,) int64, the number of samples in each box.
        size_in: samples I of the whole input line.
        size_out: samples O of the output line.
        name: "bicubic" (a = -0.5) or "bilinear".
        bits: the weights are multiples of 2**-bits.

    Returns:
        (R, O, I) float64: every filter sums to exactly 1 and is 0 outside of its box.

    >>> resize_weights(torch.tensor([1]), torch.tensor([2]), 4, 2, "bilinear", 12)
    tensor([[[0., 1., 0., 0.],
             [0., 0., 1., 0.]]], dtype=torch.float64)
    """
    start_R11, length_R11 = start.double()[:, None, None], length.double()[:, None, None]
    scale_R11 = length_R11 / size_out
    at_I = torch.arange(size_in, device=start.device) + 0.5
    center_O1 = torch.arange(size_out, device=start.device)[:, None] + 0.5
    x_ROI = (at_I - start_R11) - center_O1 * scale_R11
    x_ROI.div_(scale_R11.clamp(min=1.0)).abs_()
    w_ROI = _bicubic(x_ROI) if name == "bicubic" else (1.0 - x_ROI).clamp_(min=0.0)
    w_ROI.mul_((at_I > start_R11) & (at_I < start_R11 + length_R11))
    one = float(1 << bits)
    w_ROI.mul_(one / w_ROI.sum(dim=2, keepdim=True)).round_()
    # Add the rounding error to the largest weight, so that a constant line stays constant.
    lost_RO1 = one - w_ROI.sum(dim=2, keepdim=True)
    return w_ROI.scatter_add_(2, w_ROI.argmax(dim=2, keepdim=True), lost_RO1).div_(one)


def _bicubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Evaluate the cubic convolution kernel at x >= 0; a = -0.5 as in Pillow and TensorFlow."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
