"""Crops -> views: plan the batch on the host, then run the colour operations group by group.

Rows are sorted by the place that hue has in their random order (and those without jitter apart, those turned grey
last in each group), so that a group runs one program: three steps of brightness, contrast and saturation, which
share a form whatever their order, and hue where the group has it. Brightness alone would be cheaper by far: where a
CPU has enough rows to fill three times as many groups, its place tells them apart too.

Shapes: N images, V = 2 views, R = V N rows (view 0 first), G rows of a group, P pixels of a plane, S side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from simclr_lightning.views import kernels
from simclr_lightning.views.recipe import ViewRecipe
from simclr_lightning.views.sampling import BRIGHTNESS, CONTRAST, HUE, SATURATION, VIEWS, Colours

__all__ = ["finish_rows"]

_STEPS = 4
_ANY_STEP = _STEPS  # the place of brightness in a group that does not tell
# A group's key is 5 times hue's place plus brightness's; this one is of the rows that skip all steps.
_NO_JITTER = _STEPS * (_STEPS + 1)
_ROWS_TO_TELL = 512
# Values of a group treated at once: what a core's cache holds, or what a device is glad to have.
_CHUNK_VALUES = {"cpu": 1 << 18}
_CHUNK_VALUES_DEVICE = 1 << 27


@dataclass(frozen=True)
class _Plan:
    """Rows in the order of their treatment.

    Attributes:
        rows: (R,) int64 on the device.
        groups: for each group its key, first position, first grey position and end, within `rows`.
        coefficients: (4 steps, 4 coefficients, R, 1) float32 on the device, in the order of `rows`.
    """

    rows: Tensor
    groups: list[tuple[int, int, int, int]]
    coefficients: Tensor


def finish_rows(crops: Tensor, colours: Colours, recipe: ViewRecipe) -> Tensor:
    """Apply jitter, greyscale, blur and solarisation.

    Args:
        crops: (N, 2, 3, S, S) uint8.
        colours: the parameters of the R = 2 N rows, on the CPU.
        recipe: how brightness acts, and the blur's kernel.

    Returns:
        (2, N, 3, S, S) float32 in [0, 1] on the device of `crops`.
    """
    count, side = crops.shape[0], crops.shape[-1]
    if not (count and (recipe.jitter or recipe.grey)):
        out = crops.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
    else:
        out = torch.empty((VIEWS, count, 3, side, side), dtype=torch.float32, device=crops.device)
        _colour(crops.flatten(3).flatten(0, 1), out.view(VIEWS * count, 3, side * side), colours, recipe)
    x_R3SS = out.view(VIEWS * count, 3, side, side)
    if recipe.blur and recipe.blur_radius and count:
        _blur(x_R3SS, colours.sigma, recipe.blur_radius)
    if recipe.solarise:
        at = kernels.onto(colours.solarise, x_R3SS.device)[:, None, None, None]
        x_R3SS.copy_(torch.where(at & (x_R3SS >= 0.5), 1.0 - x_R3SS, x_R3SS))
    return out


def _chunk_rows(device: torch.device, values: int) -> int:
    return max(1, _CHUNK_VALUES.get(device.type, _CHUNK_VALUES_DEVICE) // values)


def _colour(crops_R3P: Tensor, out_R3P: Tensor, colours: Colours, recipe: ViewRecipe) -> None:
    """Colour all rows; `crops_R3P` holds an image's two views side by side, `out_R3P` view 0 first."""
    rows, _, pixels = out_R3P.shape
    plan = _plan(colours, recipe, out_R3P.device)
    source = plan.rows % (rows // VIEWS) * VIEWS + plan.rows // (rows // VIEWS)
    chunk = min(_chunk_rows(out_R3P.device, 3 * pixels), rows)
    buffer = out_R3P.new_empty((kernels.PLANES, chunk * pixels))
    divisor = buffer.new_full((), 255.0)  # on the device: by a number, CUDA would multiply by its reciprocal
    wide_R3P = _wide(out_R3P)
    for key, start, grey_start, end in plan.groups:
        for at in range(start, end, chunk):
            part = slice(at, min(at + chunk, end))
            crop_G3P = crops_R3P.index_select(0, source[part])
            planes_GP = buffer[:, : len(crop_G3P) * pixels].unflatten(1, (-1, pixels))
            planes = kernels.planes(planes_GP)
            planes.x.copy_(crop_G3P.transpose(0, 1)).div_(divisor)
            if key != _NO_JITTER:
                _jitter(planes, plan.coefficients[:, :, part], key, recipe.brightness)
            grey_from = max(grey_start - at, 0)
            if grey_from < len(crop_G3P):
                grey = kernels.planes(planes_GP[:, grey_from:])
                grey.x.copy_(kernels.luma(grey))
            wide_R3P.index_copy_(0, plan.rows[part], _wide(planes.x).transpose(0, 1))


def _wide(x: Tensor) -> Tensor:
    """Return the same bytes as numbers four times as wide: on the CPU, rows are copied a number at a time."""
    return x.view(torch.complex128) if x.device.type == "cpu" and x.shape[-1] % 4 == 0 else x


def _jitter(planes: kernels.Planes, coefficients: Tensor, key: int, brightness: str) -> None:
    hue_place, brightness_place = divmod(key, _STEPS + 1)
    columns = coefficients.flatten(0, 1).unbind()
    for step in range(_STEPS):
        scale, grey, mean, offset = columns[4 * step : 4 * step + 4]
        if step == hue_place:
            kernels.shift_hue(planes, offset)
        elif step == brightness_place:
            kernels.brighten(planes, scale, offset, brightness)
        else:
            kernels.mix(planes, scale, grey, mean, offset)
    if hue_place == _STEPS - 1:
        planes.x.clamp_(max=1.0)


def _plan(colours: Colours, recipe: ViewRecipe, device: torch.device) -> _Plan:
    """Sort the rows into groups and lay out their coefficients; all on the host but the last copy."""
    hue_place, brightness_place = ((colours.order == op).to(torch.uint8).argmax(dim=1) for op in (HUE, BRIGHTNESS))
    if device.type != "cpu" or len(hue_place) < _ROWS_TO_TELL:
        brightness_place.fill_(_ANY_STEP)
    place = (_STEPS + 1) * hue_place + brightness_place
    key = torch.where(colours.jitter, place, _NO_JITTER) * 2 + colours.grey
    rows = key.argsort(stable=True)
    bounds = [0, *key.bincount(minlength=2 * (_NO_JITTER + 1)).cumsum(0).tolist()]
    groups = [(at, *bounds[2 * at : 2 * at + 3]) for at in range(_NO_JITTER + 1)]
    factor = colours.factor
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
    order_SR = colours.order[rows].T
    coefficients = table_OCR[:, :, rows].gather(0, order_SR[:, None].expand(-1, 4, -1))
    return _Plan(kernels.onto(rows, device), groups, kernels.onto(coefficients[..., None], device))


def _blur(x_R3SS: Tensor, sigma_R: Tensor, limit: int) -> None:
    """Blur the rows whose sigma is above 0 in place, those that need equally many taps together."""
    radius_R = torch.where(sigma_R > 0, kernels.blur_radius(sigma_R, limit), 0)
    chunk = _chunk_rows(x_R3SS.device, x_R3SS[0].numel())
    for radius in range(1, limit + 1):
        for rows in (radius_R == radius).nonzero()[:, 0].split(chunk):
            if len(rows):
                w_RK = kernels.onto(kernels.blur_weights(sigma_R[rows], radius), x_R3SS.device)
                at = kernels.onto(rows, x_R3SS.device)
                x_R3SS.index_copy_(0, at, kernels.blur(x_R3SS.index_select(0, at), w_RK))
