"""Turn crops into views: color jitter, grayscale, blur and solarization of a whole batch.

The host sorts the rows into groups, and the device then processes one group at a time. All rows of a group apply hue at
the same one of the four jitter steps; their other three steps share one formula for brightness, contrast and saturation
(`kernels.mix`). Rows without jitter form a separate group. Rows that become gray come last in each group. Brightness
alone is much cheaper than the shared formula, so a CPU that has enough rows also groups them by the step of brightness.

Shapes: N images, V = 2 views, R = V N rows (view 0 first), G rows of a group, P pixels of a plane, S side of a view.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simclr_lightning.views import kernels
from simclr_lightning.views.recipe import ViewRecipe
from simclr_lightning.views.sampling import BRIGHTNESS, CONTRAST, HUE, SATURATION, VIEWS, Colors

__all__ = ["finish_rows"]

_STEPS = 4
_ANY_STEP = _STEPS  # stands for the step of brightness in groups that mix all of them
# The key of a group is 5 times the step of hue plus the step of brightness. This key marks the rows without jitter.
_NO_JITTER = _STEPS * (_STEPS + 1)
_ROWS_TO_SPLIT = 512  # with fewer rows than this, groups do not depend on the step of brightness
# Values processed at once: as many as fit the cache of a CPU core, or enough to fill a GPU.
_CHUNK_VALUES = {"cpu": 1 << 18}
_CHUNK_VALUES_DEVICE = 1 << 27


@dataclass(frozen=True)
class _Plan:
    """The rows in the order in which they are processed.

    Attributes:
        rows: (R,) int64 on the device.
        groups: (key, start, start of the gray rows, end) of each group, as positions in `rows`.
        coefficients: (4 steps, 4 coefficients, R, 1) float32 on the device, in the order of `rows`.
    """

    rows: Tensor
    groups: list[tuple[int, int, int, int]]
    coefficients: Tensor


def finish_rows(crops: Tensor, colors: Colors, recipe: ViewRecipe) -> Tensor:
    """Apply jitter, grayscale, blur and solarization to the crops of N images.

    Args:
        crops: (N, 2, 3, S, S) uint8.
        colors: the parameters of the R = 2 N rows, on the CPU.
        recipe: its `brightness` and `blur_radius` are used, and its probabilities to skip operations.

    Returns:
        (2, N, 3, S, S) float32 in [0, 1] on the device of `crops`.
    """
    count, side = crops.shape[0], crops.shape[-1]
    if not (count and (recipe.jitter or recipe.grey)):
        out = crops.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
    else:
        out = torch.empty((VIEWS, count, 3, side, side), dtype=torch.float32, device=crops.device)
        _color(crops.flatten(3).flatten(0, 1), out.view(VIEWS * count, 3, side * side), colors, recipe)
    x_R3SS = out.view(VIEWS * count, 3, side, side)
    if recipe.blur and recipe.blur_radius and count:
        _blur(x_R3SS, colors.sigma, recipe.blur_radius)
    if recipe.solarise:
        at = kernels.onto(colors.solarise, x_R3SS.device)[:, None, None, None]
        x_R3SS.copy_(torch.where(at & (x_R3SS >= 0.5), 1.0 - x_R3SS, x_R3SS))
    return out


def _chunk_rows(device: torch.device, values: int) -> int:
    return max(1, _CHUNK_VALUES.get(device.type, _CHUNK_VALUES_DEVICE) // values)


def _color(crops_R3P: Tensor, out_R3P: Tensor, colors: Colors, recipe: ViewRecipe) -> None:
    """Write the colors of all rows to `out_R3P`, view 0 first; in `crops_R3P` the two views of an image alternate."""
    rows, _, pixels = out_R3P.shape
    plan = _plan(colors, recipe, out_R3P.device)
    source = plan.rows % (rows // VIEWS) * VIEWS + plan.rows // (rows // VIEWS)
    chunk = min(_chunk_rows(out_R3P.device, 3 * pixels), rows)
    buffer = out_R3P.new_empty((kernels.PLANES, chunk * pixels))
    divisor = buffer.new_full((), 255.0)  # a tensor: CUDA would multiply by the reciprocal of a number
    wide_R3P = _wide(out_R3P)
    for key, start, gray_start, end in plan.groups:
        for at in range(start, end, chunk):
            part = slice(at, min(at + chunk, end))
            crop_G3P = crops_R3P.index_select(0, source[part])
            planes_GP = buffer[:, : len(crop_G3P) * pixels].unflatten(1, (-1, pixels))
            planes = kernels.planes(planes_GP)
            planes.x.copy_(crop_G3P.transpose(0, 1)).div_(divisor)
            if key != _NO_JITTER:
                _jitter(planes, plan.coefficients[:, :, part], key, recipe.brightness)
            gray_from = max(gray_start - at, 0)
            if gray_from < len(crop_G3P):
                gray = kernels.planes(planes_GP[:, gray_from:])
                gray.x.copy_(kernels.luma(gray))
            wide_R3P.index_copy_(0, plan.rows[part], _wide(planes.x).transpose(0, 1))


def _wide(x: Tensor) -> Tensor:
    """View float32 memory on a CPU as complex128, if possible: a quarter of the numbers is copied faster."""
    return x.view(torch.complex128) if x.device.type == "cpu" and x.shape[-1] % 4 == 0 else x


def _jitter(planes: kernels.Planes, coefficients: Tensor, key: int, brightness: str) -> None:
    hue_place, brightness_place = divmod(key, _STEPS + 1)
    columns = coefficients.flatten(0, 1).unbind()
    for step in range(_STEPS):
        scale, gray, mean, offset = columns[4 * step : 4 * step + 4]
        if step == hue_place:
            kernels.shift_hue(planes, offset)
        elif step == brightness_place:
            kernels.brighten(planes, scale, offset, brightness)
        else:
            kernels.mix(planes, scale, gray, mean, offset)
    if hue_place == _STEPS - 1:
        planes.x.clamp_(max=1.0)


def _plan(colors: Colors, recipe: ViewRecipe, device: torch.device) -> _Plan:
    """Sort the rows into groups and order their coefficients, on the host; then copy the plan to the device."""
    hue_place, brightness_place = ((colors.order == op).to(torch.uint8).argmax(dim=1) for op in (HUE, BRIGHTNESS))
    if device.type != "cpu" or len(hue_place) < _ROWS_TO_SPLIT:
        brightness_place.fill_(_ANY_STEP)
    place = (_STEPS + 1) * hue_place + brightness_place
    key = torch.where(colors.jitter, place, _NO_JITTER) * 2 + colors.grey
    rows = key.argsort(stable=True)
    bounds = [0, *key.bincount(minlength=2 * (_NO_JITTER + 1)).cumsum(0).tolist()]
    groups = [(at, *bounds[2 * at : 2 * at + 3]) for at in range(_NO_JITTER + 1)]
    factor = colors.factor
    rest = 1.0 - factor
    one, zero = torch.ones_like(factor[:, 0]), torch.zeros_like(factor[:, 0])
    by_operation = {
        BRIGHTNESS: (factor[:, 0], zero, zero, zero),
        CONTRAST: (factor[:, 1], zero, rest[:, 1], zero),
        SATURATION: (factor[:, 2], rest[:, 2], zero, zero),
        HUE: (one, zero, zero, factor[:, 3]),
    }
    if recipe.brightness == "add":
        by_operation[BRIGHTNESS] = (one, zero, zero, factor[:, 0])
    table_OCR = torch.stack([torch.stack(by_operation[operation]) for operation in range(_STEPS)])
    order_SR = colors.order[rows].T
    coefficients = table_OCR[:, :, rows].gather(0, order_SR[:, None].expand(-1, 4, -1))
    return _Plan(kernels.onto(rows, device), groups, kernels.onto(coefficients[..., None], device))


def _blur(x_R3SS: Tensor, sigma_R: Tensor, limit: int) -> None:
    """Blur the rows whose sigma is above 0 in place, batched by the number of taps."""
    radius_R = torch.where(sigma_R > 0, kernels.blur_radius(sigma_R, limit), 0)
    chunk = _chunk_rows(x_R3SS.device, x_R3SS[0].numel())
    for radius in range(1, limit + 1):
        for rows in (radius_R == radius).nonzero()[:, 0].split(chunk):
            if len(rows):
                w_RK = kernels.onto(kernels.blur_weights(sigma_R[rows], radius), x_R3SS.device)
                at = kernels.onto(rows, x_R3SS.device)
                x_R3SS.index_copy_(0, at, kernels.blur(x_R3SS.index_select(0, at), w_RK))
