"""The colour operations and the blur of a view, batched, each row with parameters of its own.

A row's bits do not depend on its batch: everything is element by element in single, correctly rounded operations (no
fused multiply-add, no vector approximation of a function), and the one reduction sums multiples of 2**-22 in
float64, or as integers where a device has no float64 (Apple's), which is exact in any order.

Shapes: R rows, P pixels of a plane, S side. Colours work on planes (3, R, P), parameters are (R, 1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blur", "blur_radius", "blur_weights", "has_float64", "linear_step", "luma", "onto", "shift_hue"]

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 as torchvision and TensorFlow round it
_QUANTUM = 2.0**-22


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64; Apple's GPUs do not."""
    return device.type != "mps"


def onto(x: Tensor, device: torch.device) -> Tensor:
    """Return the numbers on the device; the host waits for none of its earlier work (CUDA takes a copy first)."""
    return x.to(device, non_blocking=device.type == "cuda")


def luma(x_3RP: Tensor, work: Tensor) -> Tensor:
    """Return the grey value of each pixel, (R, P), written to `work[0]`; `work` is (2 or more, R, P)."""
    y_RP, term_RP = work[0], work[1]
    torch.mul(x_3RP[0], _LUMA[0], out=y_RP).add_(torch.mul(x_3RP[1], _LUMA[1], out=term_RP))
    return y_RP.add_(torch.mul(x_3RP[2], _LUMA[2], out=term_RP))


def linear_step(x_3RP: Tensor, coefficients: Tensor, work: Tensor) -> None:
    """Apply clamp(scale x + grey luma(x) + mean E[luma(x)] + offset, 0, 1) in place.

    Brightness, contrast and saturation are all of this form, by torchvision's definitions: brightness by a factor f
    is scale f (added, it is offset f), contrast scale f and mean 1 - f, saturation scale f and grey 1 - f.

    Args:
        x_3RP: (3, R, P) float32 in [0, 1].
        coefficients: (4, R, 1) float32: scale, grey, mean, offset.
        work: (2 or more, R, P) float32, overwritten; allocating planes anew costs more than the arithmetic.
    """
    scale_R1, grey_R1, mean_R1, offset_R1 = coefficients
    y_RP = luma(x_3RP, work)
    constant_R1 = _mean(y_RP, work[1]).mul_(mean_R1).add_(offset_R1)
    x_3RP.mul_(scale_R1).add_(y_RP.mul_(grey_R1).add_(constant_R1)).clamp_(0.0, 1.0)


def _mean(y_RP: Tensor, work_RP: Tensor) -> Tensor:
    """Return the mean of each row's numbers in [0, 1], (R, 1) float32, summed exactly; `work_RP` is overwritten."""
    # Passing through [2, 4) rounds to multiples of the quantum.
    torch.add(y_RP, 2.0, out=work_RP).sub_(2.0)
    if not has_float64(y_RP.device):
        levels_RP = work_RP.mul_(1.0 / _QUANTUM).int()
        return levels_RP.sum(dim=1, keepdim=True, dtype=torch.int64).float().mul_(_QUANTUM).div_(y_RP.shape[1])
    sum_R1 = work_RP.sum(dim=1, keepdim=True, dtype=torch.float64)
    # A divisor on the device: by a number, CUDA would multiply by its rounded reciprocal.
    return sum_R1.div_(sum_R1.new_full((), y_RP.shape[1])).float()


def shift_hue(x_3RP: Tensor, turns_R1: Tensor, work: Tensor) -> None:
    """Turn the hue of RGB planes in [0, 1] in place, by up to half a circle; the same map as through HSV and back.

    With the largest channel M, the smallest m and the hue at an angle (in sixths of a circle) from red, a channel
    becomes m + (M - m) clamp(2 - d, 0, 1), where d is the distance on the circle from the new hue to the channel's
    own: red at 0, green at 2, blue at -2. The old angle from red is (g + b - r - m) / (M - m) + 1, a form that holds
    in all six sextants, on green's side when g > b and on blue's otherwise: no branches.

    Args:
        x_3RP: (3, R, P) float32 in [0, 1].
        turns_R1: (R, 1) float32, the shift in circles, -0.5 to 0.5.
        work: (4 or more, R, P) float32, overwritten.
    """
    r_RP, g_RP, b_RP = x_3RP
    low_RP, chroma_RP, hue_RP, scratch_RP = work[:4]
    torch.minimum(torch.minimum(r_RP, g_RP, out=low_RP), b_RP, out=low_RP)
    torch.maximum(torch.maximum(r_RP, g_RP, out=chroma_RP), b_RP, out=chroma_RP).sub_(low_RP)
    torch.add(g_RP, b_RP, out=hue_RP).sub_(r_RP).sub_(low_RP)
    # A grey pixel has no hue, and needs none.
    hue_RP.div_(torch.clamp(chroma_RP, min=1e-30, out=scratch_RP)).add_(1.0)
    hue_RP.copysign_(torch.sub(g_RP, b_RP, out=scratch_RP)).add_(turns_R1 * 6.0)
    for channel_RP, own in zip(x_3RP, (0.0, 2.0, -2.0), strict=True):
        torch.sub(hue_RP, own, out=channel_RP)
    # The new hue is within 8 of each channel's; folding twice at 3 gives their distance on a circle of 6.
    x_3RP.abs_().sub_(3.0).abs_().sub_(3.0).abs_()
    x_3RP.neg_().add_(2.0).clamp_(0.0, 1.0).mul_(chroma_RP).add_(low_RP)


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
