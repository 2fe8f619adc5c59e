"""The colour operations and the blur of a view, batched, each row with parameters of its own.

A row's bits do not depend on its batch: everything is element by element in single, correctly rounded operations (no
fused multiply-add, no vector approximation of a function), and the one reduction sums multiples of 2**-22 in
float64, or as integers where a device has no float64 (Apple's), which is exact in any order.

Shapes: R rows, P pixels of a plane, S side. Colours work on planes (3, R, P), parameters are (R, 1).
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blur", "blur_radius", "blur_weights", "brighten", "has_float64", "luma", "mix", "onto", "shift_hue"]

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 as torchvision and TensorFlow round it
_QUANTUM = 2.0**-22


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64; Apple's GPUs do not."""
    return device.type != "mps"


def onto(x: Tensor, device: torch.device) -> Tensor:
    """Return the numbers on the device; the host waits for none of its earlier work (CUDA takes a copy first)."""
    return x.to(device, non_blocking=device.type == "cuda")


@lru_cache(maxsize=32)
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").to(device)[:, None, None]


def luma(x_3RP: Tensor, work: Tensor) -> Tensor:
    """Return the grey value of each pixel, (R, P), written to `work[0]`; `work` is (3 or more, R, P)."""
    terms_3RP = torch.mul(x_3RP, _by_channel(_LUMA, x_3RP.device), out=work[:3])
    r_RP, g_RP, b_RP = terms_3RP.unbind()
    return r_RP.add_(g_RP).add_(b_RP)


def brighten(x_3RP: Tensor, coefficients: Tensor, rule: str) -> None:
    """Apply what `mix` would to rows of brightness, by the rule "multiply" or "add": the same to the bit."""
    scale_R1, _, _, offset_R1 = coefficients.unbind()
    (x_3RP.add_(offset_R1) if rule == "add" else x_3RP.mul_(scale_R1)).clamp_(0.0, 1.0)


def mix(x_3RP: Tensor, coefficients: Tensor, work: Tensor) -> None:
    """Apply clamp(scale x + grey luma(x) + mean E[luma(x)] + offset, 0, 1) in place.

    Brightness, contrast and saturation are all of this form, by torchvision's definitions: brightness by a factor f
    is scale f (added, it is offset f), contrast scale f and mean 1 - f, saturation scale f and grey 1 - f.

    Args:
        x_3RP: (3, R, P) float32 in [0, 1].
        coefficients: (4, R, 1) float32: scale, grey, mean, offset.
        work: (3 or more, R, P) float32, overwritten; allocating planes anew costs more than the arithmetic.
    """
    scale_R1, grey_R1, mean_R1, offset_R1 = coefficients.unbind()
    y_RP = luma(x_3RP, work)
    constant_R1 = _mean(y_RP, work[1]).mul_(mean_R1).add_(offset_R1)
    x_3RP.mul_(scale_R1).add_(y_RP.mul_(grey_R1).add_(constant_R1)).clamp_(0.0, 1.0)


def _mean(y_RP: Tensor, work_RP: Tensor) -> Tensor:
    """Return the mean of each row's numbers in [0, 1], (R, 1) float32, summed exactly; `work_RP` is overwritten."""
    # A number in [2, 4) is rounded to a multiple of the quantum.
    torch.add(y_RP, 2.0, out=work_RP)
    if not has_float64(y_RP.device):
        levels_RP = work_RP.sub_(2.0).mul_(1.0 / _QUANTUM).int()
        return levels_RP.sum(dim=1, keepdim=True, dtype=torch.int64).float().mul_(_QUANTUM).div_(y_RP.shape[1])
    sum_R1 = work_RP.sum(dim=1, keepdim=True, dtype=torch.float64).sub_(2.0 * y_RP.shape[1])
    # A divisor on the device: by a number, CUDA would multiply by its rounded reciprocal.
    return sum_R1.div_(sum_R1.new_full((), y_RP.shape[1])).float()


def shift_hue(x_3RP: Tensor, turns_R1: Tensor, work: Tensor) -> None:
    """Turn the hue of RGB planes in [0, 1] in place, by up to half a circle; the same map as through HSV and back.

    With the largest channel M, the smallest m, C = M - m and the hue h in circles, 0 to 1, a channel is
    m + C clamp(2 - 6 d, 0, 1), where d is the distance on the circle from h to the channel's own hue: 0 for red, 1/3
    for green, 2/3 for blue. For green and blue |h - own| may stand for d, as it differs only where the clamp gives 0
    for both; for red d is 1/2 - |h - 1/2|. So green and blue are m + 2 C - 6 C clamp(|h - own|, 1/6, 1/3), and red is
    m - C + 6 C clamp(|h - 1/2|, 1/6, 1/3).

    The old hue lies 1/6 + (g + b - r - m) / 6 C from red's, a form that holds all around the circle, on green's side
    when g > b and on blue's otherwise: no branches.

    Args:
        x_3RP: (3, R, P) float32 in [0, 1].
        turns_R1: (R, 1) float32, the shift in circles, -0.5 to 0.5.
        work: (4 or more, R, P) float32, overwritten.
    """
    r_RP, g_RP, b_RP = x_3RP.unbind()
    low_RP, chroma6_RP, hue_RP, scratch_RP = work[:4].unbind()
    torch.minimum(torch.minimum(r_RP, g_RP, out=low_RP), b_RP, out=low_RP)
    torch.maximum(torch.maximum(r_RP, g_RP, out=chroma6_RP), b_RP, out=chroma6_RP).sub_(low_RP)
    # A grey pixel has no hue, and needs none.
    chroma6_RP.mul_(6.0).clamp_(min=1e-30)
    torch.add(g_RP, b_RP, out=hue_RP).sub_(r_RP).sub_(low_RP).div_(chroma6_RP).add_(1.0 / 6.0)
    hue_RP.copysign_(torch.sub(g_RP, b_RP, out=scratch_RP)).add_(turns_R1 + 1.0).frac_()
    middle_311 = _by_channel((1.0 / 2.0, 1.0 / 3.0, 2.0 / 3.0), x_3RP.device)
    torch.sub(hue_RP, middle_311, out=x_3RP).abs_().clamp_(1.0 / 6.0, 1.0 / 3.0).mul_(chroma6_RP)
    r_RP.sub_(torch.mul(chroma6_RP, 1.0 / 6.0, out=scratch_RP)).add_(low_RP)
    top_RP = chroma6_RP.mul_(1.0 / 3.0).add_(low_RP)
    torch.sub(top_RP, x_3RP[1:], out=x_3RP[1:])
    x_3RP.clamp_(max=1.0)  # what rounding put above


def blur_radius(sigma_R: Tensor, limit: int) -> Tensor:
    """Return the taps on either side that a Gaussian needs, (R,) int64: 4 sigma and at most `limit`.

    Beyond lie 6e-5 of its mass: after both passes less than 0.04 of 255 levels.
    """
    return (4.0 * sigma_R - 0.5).ceil().clamp(1, limit).long()


def blur_weights(sigma_R: Tensor, radius: int) -> Tensor:
    """Return the sampled, normalised Gaussian, (R, radius + 1) float32: the middle, then one side.

    Args:
        sigma_R: (R,) float64 standard deviations in pixels, above 0.
        radius: taps on either side.
    """
    # One by one: a vectorised exp may round an element by where it stands in the batch.
    taps = [[math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)] for sigma in sigma_R.tolist()]
    w_RK = torch.tensor(taps, dtype=torch.float64, device="cpu")
    return (w_RK / (2.0 * w_RK.sum(dim=1, keepdim=True) - w_RK[:, :1])).float()


def blur(x_R3SS: Tensor, w_RK: Tensor) -> Tensor:
    """Convolve with symmetric kernels along both axes; edges are mirrored, the border pixel not repeated.

    Args:
        x_R3SS: (R, 3, S, S) float32.
        w_RK: (R, K) float32, as from `blur_weights`, on the same device; K <= S.

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
