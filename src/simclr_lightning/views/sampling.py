"""Draw the parameters of views: crop boxes, color factors, blur widths. No pixels are read here.

Parameters are computed on the CPU for the whole batch, in float64 where a logarithm or a root is taken. So they are
the same whatever device makes the views, and the host plans its work without waiting for the device.

Shapes: N images, V = 2 views, R = V N rows, the rows of view 0 before those of view 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from simclr_lightning.random import uniform, uniform_blocks
from simclr_lightning.views.recipe import ViewRecipe

__all__ = [
    "BRIGHTNESS",
    "CONTRAST",
    "HUE",
    "SATURATION",
    "VIEWS",
    "Colors",
    "Crops",
    "sample_colors",
    "sample_crops",
    "sample_crops_of_one",
]

VIEWS = 2
TRIES = 10

# The keys of the operations in the hash. A new number changes the views of every seed: never reuse or renumber one.
CROP, FLIP, JITTER, GRAY, BLUR, SOLARIZE = range(6)

# The four operations of the jitter: the values in `Colors.order` and the columns of `Colors.factor`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclass(frozen=True)
class Crops:
    """The parameters of R crops: `box` (R, 4) int64 (top, left, height, width) in pixels, `flip` (R,) bool."""

    box: Tensor
    flip: Tensor


@dataclass(frozen=True)
class Colors:
    """The parameters of the operations that follow the crop, for R rows; flags are named after `ViewRecipe`'s fields.

    Attributes:
        jitter: (R,) bool.
        factor: (R, 4) float32: the factor (or the offset) of brightness, the factors of contrast and saturation, and
            the shift of hue in turns.
        order: (R, 4) int64, the jitter's operation at each of its four steps.
        grey: (R,) bool.
        sigma: (R,) float64, standard deviation of the blur in pixels; 0 for no blur.
        solarise: (R,) bool.
    """

    jitter: Tensor
    factor: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor
    solarise: Tensor


def sample_crops(height: int, width: int, *, seed: int, epoch: int, indices: Tensor, recipe: ViewRecipe) -> Crops:
    """Draw a crop box and a flip for both views of N images of one size, as torchvision's RandomResizedCrop does.

    Up to ten boxes are drawn, with an area uniform in `recipe.area` and a uniform logarithm of the aspect. The first
    box that fits into the image is placed uniformly. If none fits, the box is the largest centered one whose aspect is
    in `recipe.aspect`.

    Args:
        height: height of the images in pixels.
        width: width of the images in pixels.
        seed: the seed of the run.
        epoch: the number of the epoch.
        indices: (N,) int64, the positions of the images in the data set.
        recipe: its `area`, `aspect` and `flip` are used.
    """
    blocks = [(view, op, n) for op, n in ((CROP, 2 * TRIES + 2), (FLIP, 1)) for view in range(VIEWS)]
    drawn = uniform_blocks(blocks, seed=seed, epoch=epoch, indices=indices.cpu())
    u_RC = torch.cat(drawn[:VIEWS]).double()
    flip_R = torch.cat(drawn[VIEWS:])[:, 0] < recipe.flip
    low, high = recipe.area
    area_RT = (u_RC[:, :TRIES] * ((high - low) * height * width)).add_(low * height * width)
    low, high = math.log(recipe.aspect[0]), math.log(recipe.aspect[1])
    aspect_RT = (u_RC[:, TRIES : 2 * TRIES] * (high - low)).add_(low).exp_()
    side_2RT = torch.stack([area_RT / aspect_RT, area_RT * aspect_RT]).sqrt_().round_()
    limit_21, fallback_4 = _limits(height, width, recipe.aspect)
    fits_RT = ((side_2RT >= 1) & (side_2RT <= limit_21[:, None])).all(dim=0)
    first_R1 = fits_RT.to(torch.uint8).argmax(dim=1, keepdim=True)  # the first of equal maxima
    side_2R = side_2RT.gather(2, first_R1.expand(2, -1, -1))[..., 0]
    corner_2R = (limit_21 + 1 - side_2R).mul_(u_RC[:, 2 * TRIES :].T).floor_()
    box_R4 = torch.cat([corner_2R, side_2R]).T.long()
    return Crops(torch.where(fits_RT.any(dim=1, keepdim=True), box_R4, fallback_4), flip_R)


def sample_crops_of_one(height: int, width: int, *, seed: int, epoch: int, index: int, recipe: ViewRecipe) -> Crops:
    """Draw the crops of one image, equal bit for bit to those of `sample_crops`, in plain Python.

    Loader workers cut one image at a time. For two boxes, calling a tensor operation takes ten times its arithmetic.
    """
    draws = [partial(uniform, seed=seed, epoch=epoch, index=index, view=view, operation=CROP) for view in range(VIEWS)]
    boxes = [_box_of_one(height, width, draw, recipe) for draw in draws]
    flips = [
        uniform(0, seed=seed, epoch=epoch, index=index, view=view, operation=FLIP) < recipe.flip
        for view in range(VIEWS)
    ]
    return Crops(torch.tensor(boxes, device="cpu"), torch.tensor(flips, device="cpu"))


def _box_of_one(height: int, width: int, draw: Callable[[int], float], recipe: ViewRecipe) -> list[int]:
    """Draw up to ten boxes, with every operation in the order of `sample_crops`: the order decides the last bit."""
    low, high = recipe.area
    log_low, log_high = math.log(recipe.aspect[0]), math.log(recipe.aspect[1])
    for t in range(TRIES):
        area = draw(t) * ((high - low) * height * width) + low * height * width
        log_aspect = draw(TRIES + t) * (log_high - log_low) + log_low
        # torch's exp, since the last bit of math.exp may differ.
        aspect = torch.tensor(log_aspect, dtype=torch.float64, device="cpu").exp_().item()
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 1 <= h <= height and 1 <= w <= width:
            top = math.floor((height + 1 - h) * draw(2 * TRIES))
            return [top, math.floor((width + 1 - w) * draw(2 * TRIES + 1)), h, w]
    box: list[int] = _limits(height, width, recipe.aspect)[1].tolist()
    return box


@lru_cache(maxsize=256)
def _limits(height: int, width: int, aspect: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return (height, width), (2, 1) float64, and the largest centered box whose aspect is in range, (4,) int64."""
    h, w = height, width
    if width < aspect[0] * height:
        h = max(1, round(width / aspect[0]))
    elif width > aspect[1] * height:
        w = max(1, round(height * aspect[1]))
    box = torch.tensor([(height - h) // 2, (width - w) // 2, h, w], device="cpu")
    return torch.tensor([[height], [width]], dtype=torch.float64, device="cpu"), box


def sample_colors(*, seed: int, epoch: int, indices: Tensor, recipe: ViewRecipe) -> Colors:
    """Draw jitter, grayscale, blur and solarization for both views of N images.

    Args:
        seed: the seed of the run.
        epoch: the number of the epoch.
        indices: (N,) int64, the positions of the images in the data set.
        recipe: the probabilities and ranges.
    """
    counts = ((JITTER, 9), (GRAY, 1), (BLUR, 2), (SOLARIZE, 1))
    blocks = [(view, op, count) for op, count in counts for view in range(VIEWS)]
    drawn = uniform_blocks(blocks, seed=seed, epoch=epoch, indices=indices.cpu())
    jitter_R9, gray_R1, blur_R2, solarize_R1 = (torch.cat(drawn[at : at + VIEWS]) for at in range(0, len(drawn), VIEWS))
    low, high = recipe.blur_sigma
    sigma_R = low + (high - low) * blur_R2[:, 1].double()
    return Colors(
        jitter=jitter_R9[:, 0] < recipe.jitter,
        factor=_factors(jitter_R9[:, 1:5].double(), recipe),
        order=jitter_R9[:, 5:9].argsort(dim=1, stable=True),
        grey=gray_R1[:, 0] < recipe.grey,
        sigma=torch.where(blur_R2[:, 0] < recipe.blur, sigma_R, 0.0),
        solarise=solarize_R1[:, 0] < recipe.solarise,
    )


def _factors(u_R4: Tensor, recipe: ViewRecipe) -> Tensor:
    """Scale uniform numbers (R, 4) to factors of brightness, contrast, saturation and hue, (R, 4) float32."""
    reach, turn = 0.8 * recipe.strength, 0.2 * recipe.strength
    factor = (max(0.0, 1.0 - reach), 1.0 + reach)
    brightness = factor if recipe.brightness == "multiply" else (-reach, reach)
    ranges_42 = torch.tensor([brightness, factor, factor, (-turn, turn)], dtype=torch.float64, device="cpu")
    low_4, high_4 = ranges_42[:, 0], ranges_42[:, 1]
    return ((high_4 - low_4) * u_R4).add_(low_4).float()
