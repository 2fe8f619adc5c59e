"""Photographs and chosen parameters for tests of views, and references in Pillow and torchvision."""

from __future__ import annotations

import random

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from skimage import data
from torch import Tensor

from simclr_lightning.views import (
    ViewRecipe,
)
from simclr_lightning.views.sampling import Colors

KEYS = {"seed": 11, "epoch": 3}
LEVEL = 1 / 255


def photographs(n: int, height: int, width: int) -> Tensor:
    """Cut n patches of two photographs, (n, 3, height, width) uint8."""
    sources = [torch.from_numpy(x.copy()).permute(2, 0, 1) for x in (data.astronaut(), data.coffee()[:, :500])]
    draw = random.Random(n * height + width)
    out = []
    for i in range(n):
        source = sources[i % 2]
        top, left = draw.randrange(source.shape[1] - height), draw.randrange(source.shape[2] - width)
        out.append(source[:, top : top + height, left : left + width])
    return torch.stack(out)


def colors(rows: int, **fields: Tensor) -> Colors:
    """Return parameters that leave all rows unchanged, except for the given fields."""
    no = torch.zeros(rows, dtype=torch.bool)
    factor = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(rows, 1)
    plain = {"jitter": no, "grey": no, "solarise": no, "factor": factor, "sigma": torch.zeros(rows).double()}
    return Colors(**({"order": torch.arange(4).repeat(rows, 1)} | plain | fields))


def reference_finish(crop: Tensor, c: Colors, row: int, chosen: ViewRecipe) -> Tensor:
    """Turn one crop (3, S, S) into a view with torchvision's functional operations."""
    x = crop.float() / 255
    if c.jitter[row]:
        brightness, contrast, saturation, hue = c.factor[row].tolist()
        for operation in c.order[row].tolist():
            if operation == 0 and chosen.brightness == "add":
                x = (x + brightness).clamp(0, 1)
            elif operation == 0:
                x = TF.adjust_brightness(x, brightness)
            elif operation == 1:
                x = TF.adjust_contrast(x, contrast)
            elif operation == 2:
                x = TF.adjust_saturation(x, saturation)
            else:
                x = TF.adjust_hue(x, hue).clamp(0, 1)
    if c.grey[row]:
        x = TF.rgb_to_grayscale(x, 3)
    if c.sigma[row] > 0:
        x = TF.gaussian_blur(x, [2 * chosen.blur_radius + 1] * 2, [c.sigma[row].item()] * 2)
    return TF.solarize(x, 0.5) if c.solarise[row] else x


def pil_crop(image: Tensor, box: list[int], flip: bool, size: int, filter_name: str = "bicubic") -> Tensor:
    """Crop, resize and flip with Pillow, (3, size, size) uint8."""
    top, left, h, w = box
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
    # Across, then down, as in older versions of Pillow; newer ones choose the order by cost. Where the filter exceeds
    # black or white, the two orders differ by several levels, since each pass clips.
    for shape in ((size, h), (size, size)):
        picture = picture.resize(shape, Image.Resampling[filter_name.upper()])
    out = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    return out.flip(2) if flip else out
