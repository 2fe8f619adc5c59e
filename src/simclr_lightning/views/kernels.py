"""Change the colors of rows and blur them, batched, with different parameters for each row.

The bits of a row do not depend on its batch. Elementwise operations are correctly rounded one by one, without fused
multiply-add and without vectorized approximations of functions. The one reduction sums multiples of 2**-22 in float64,
or as integers on devices without float64 (Apple GPUs); both are exact in any order.

Shapes: R rows, P pixels of a plane, S side. Color operations take planes (3, R, P) and parameters (R, 1).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "PLANES",
    "Planes",
    "blur",
    "blur_radius",
    "blur_weights",
    "brighten",
    "has_float64",
    "luma",
    "mix",
    "onto",
    "planes",
    "shift_hue",
]

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, rounded as in torchvision and TensorFlow
_QUANTUM = 2.0**-22
PLANES = 3 + 4  # red, green, blue, and four planes of scratch memory


def has_float64(device: torch.device) -> bool:
    """Return whether the device computes in float64; Apple GPUs (mps) do not."""
    return device.type != "mps"


def onto(x: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor to the device without waiting for the device's earlier work."""
    return x.to(device, non_blocking=device.type == "cuda")


@lru_cache(maxsize=32)
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").to(device)[:, None, None]


class Planes(NamedTuple):
    """The planes of R rows, float32: all colors x (3, R, P), each color (R, P), and scratch memory.

    The scratch memory is shared by all operations, since allocating it takes longer than the arithmetic.
    """

    x: Tensor
    red: Tensor
    green: Tensor
    blue: Tensor
    terms: Tensor  # (3, R, P): the first three planes of `work`
    work: tuple[Tensor, ...]  # four planes (R, P)


def planes(buffer: Tensor) -> Planes:
    """Return a buffer (PLANES, R, P) as `Planes`, without copying."""
    red, green, blue, *work = buffer.unbind()
    return Planes(buffer[:3], red, green, blue, buffer[3:6], tuple(work))


def luma(planes: Planes) -> Tensor:
    """Return the gray value of each pixel, (R, P), in the first scratch plane."""
    torch.mul(planes.x, _by_channel(_LUMA, planes.x.device), out=planes.terms)
    return planes.work[0].add_(planes.work[1]).add_(planes.work[2])


def brighten(planes: Planes, scale_R1: Tensor, offset_R1: Tensor, rule: str) -> None:
    """Change the brightness in place, by the rule "multiply" or "add"; equal to `mix` bit for bit."""
    (planes.x.add_(offset_R1) if rule == "add" else planes.x.mul_(scale_R1)).clamp_(0.0, 1.0)


def mix(planes: Planes, scale_R1: Tensor, gray_R1: Tensor, mean_R1: Tensor, offset_R1: Tensor) -> None:
    """Apply clamp(scale x + gray luma(x) + mean E[luma(x)] + offset, 0, 1) in place.

    Brightness, contrast and saturation with a factor f have this form, by torchvision's definitions. Brightness:
    scale f (or offset f, when f is added). Contrast: scale f, mean 1 - f. Saturation: scale f, gray 1 - f.
    """
    y_RP = luma(planes)
    constant_R1 = _mean(y_RP, planes.work[1]).mul_(mean_R1).add_(offset_R1)
    planes.x.mul_(scale_R1).add_(y_RP.mul_(gray_R1).add_(constant_R1)).clamp_(0.0, 1.0)


def _mean(y_RP: Tensor, work_RP: Tensor) -> Tensor:
    """Return the mean of each row of numbers in [0, 1], (R, 1) float32, summed exactly; `work_RP` is overwritten."""
    pixels = y_RP.shape[1]
    # Float32 numbers in [2, 4) are multiples of the quantum.
    torch.add(y_RP, 2.0, out=work_RP)
    if not has_float64(y_RP.device):
        levels_RP = work_RP.sub_(2.0).mul_(1.0 / _QUANTUM).int()
        return levels_RP.sum(dim=1, keepdim=True, dtype=torch.int64).float().mul_(_QUANTUM / pixels)
    return work_RP.sum(dim=1, keepdim=True, dtype=torch.float64).sub_(2.0 * pixels).mul_(1.0 / pixels).float()


def shift_hue(planes: Planes, turns_R1: Tensor) -> None:
    """Rotate the hue of colors in [0, 1] in place; equal to a conversion to HSV and back.

    Rounding may leave a channel 1e-7 above 1; the operation that follows clamps it.

    Let M be the largest channel, m the smallest, C = M - m, and h the hue in [0, 1), in turns. Then a channel is
    m + C clamp(2 - 6 d, 0, 1), where d is the circular distance from h to the channel's hue c: 0 for red, 1/3 for
    green, 2/3 for blue. For green and blue, |h - c| can replace d: where they differ, the clamp gives 0 for both. For
    red, d = 1/2 - |h - 1/2|. So green and blue are m + 2 C - 6 C clamp(|h - c|, 1/6, 1/3), and red is
    m - C + 6 C clamp(|h - 1/2|, 1/6, 1/3).

    The distance of the old hue from red is 1/6 + (g + b - r - m) / 6 C for every hue; its direction is toward green
    when g > b, else toward blue. So no branches are needed.

    Args:
        planes: colors in [0, 1].
        turns_R1: (R, 1) float32, the shift in turns of the hue circle, -0.5 to 0.5.
    """
    x_3RP, red, green, blue, _, (low, chroma6, hue, scratch) = planes
    torch.minimum(torch.minimum(red, green, out=low), blue, out=low)
    torch.maximum(torch.maximum(red, green, out=chroma6), blue, out=chroma6).sub_(low)
    # A gray pixel has C = 0 and no hue; any result of the division is right for it.
    chroma6.mul_(6.0).clamp_(min=1e-30)
    torch.add(green, blue, out=hue).sub_(red).sub_(low).div_(chroma6).add_(1.0 / 6.0)
    hue.copysign_(torch.sub(green, blue, out=scratch)).add_(turns_R1 + 1.0).frac_()
    middle_311 = _by_channel((1.0 / 2.0, 1.0 / 3.0, 2.0 / 3.0), x_3RP.device)
    torch.sub(hue, middle_311, out=x_3RP).abs_().clamp_(1.0 / 6.0, 1.0 / 3.0).mul_(chroma6)
    red.sub_(torch.mul(chroma6, 1.0 / 6.0, out=scratch)).add_(low)
    top = chroma6.mul_(1.0 / 3.0).add_(low)
    torch.sub(top, green, out=green)
    torch.sub(top, blue, out=blue)


def blur_radius(sigma_R: Tensor, limit: int) -> Tensor:
    """Return the number of taps on either side of the middle, (R,) int64: about 4 sigma, from 1 to `limit`.

    The taps left out hold 6e-5 of the Gaussian's mass: after both passes less than 0.04 of 255 levels.

    >>> blur_radius(torch.tensor([0.1, 1.0, 9.0]), limit=11)
    tensor([ 1,  4, 11])
    """
    return (4.0 * sigma_R - 0.5).ceil().clamp(1, limit).long()


def blur_weights(sigma_R: Tensor, radius: int) -> Tensor:
    """Return the sampled, normalized Gaussians, (R, radius + 1) float32: the middle tap, then those on one side.

    Args:
        sigma_R: (R,) float64 standard deviations in pixels, above 0.
        radius: taps on either side of the middle.
    """
    # One by one: the rounding of a vectorized exp may depend on the position in the batch.
    taps = [[math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)] for sigma in sigma_R.tolist()]
    w_RK = torch.tensor(taps, dtype=torch.float64, device="cpu")
    return (w_RK / (2.0 * w_RK.sum(dim=1, keepdim=True) - w_RK[:, :1])).float()


def blur(x_R3SS: Tensor, w_RK: Tensor) -> Tensor:
    """Convolve rows with symmetric kernels along both axes; edges are mirrored without repeating the border pixel.

    Args:
        x_R3SS: (R, 3, S, S) float32.
        w_RK: (R, K) float32 from `blur_weights`, on the same device; K <= S.

    Returns:
        (R, 3, S, S) float32, a new tensor.
    """
    side, radius = x_R3SS.shape[-1], w_RK.shape[1] - 1
    w_KR111 = w_RK.T[:, :, None, None, None]
    for dim, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        wide = F.pad(x_R3SS, pad, mode="reflect")
        x_R3SS = wide.narrow(dim, radius, side) * w_KR111[0]
        both = torch.empty_like(x_R3SS)
        for k in range(1, radius + 1):
            torch.add(wide.narrow(dim, radius - k, side), wide.narrow(dim, radius + k, side), out=both)
            x_R3SS.add_(both.mul_(w_KR111[k]))
    return x_R3SS
