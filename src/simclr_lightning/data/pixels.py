"""Convert one image of any common kind (PIL, NumPy, torch) to a (3, H, W) tensor.

Shapes: H, W height and width in pixels; C = 1 or 3 channels.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simclr_lightning.data.disk.decode import from_pil

SHAPES = "(H, W), (H, W, 1), (H, W, 3), (1, H, W) or (3, H, W)"
_SLACK = 1e-3  # a float image may leave [0, 1] by so much, by rounding


def kind_of(image: Any) -> str | None:
    """Return the kind of an image, such as "uint8 array" or "float tensor"; None for what is no image.

    >>> kind_of(torch.zeros(3, 8, 8)), kind_of(np.zeros((8, 8, 3), np.uint8)), kind_of("cat")
    ('float tensor', 'uint8 array', None)
    """
    if isinstance(image, Image.Image):
        return "PIL image"
    if isinstance(image, Tensor):
        dtype = "float" if image.is_floating_point() else str(image.dtype).removeprefix("torch.")
        return f"{dtype} tensor" if image.ndim in (2, 3) else None
    if isinstance(image, np.ndarray):
        return f"{'float' if image.dtype.kind == 'f' else image.dtype} array" if image.ndim in (2, 3) else None
    return None


def to_rgb(image: Any) -> Tensor:
    """Return one image as (3, H, W), uint8 or float32 in [0, 1] as it was; gray gets three equal channels.

    Args:
        image: a PIL image of any mode, or an array or tensor of shape (H, W), (H, W, C) or (C, H, W), uint8 or
            floating-point in [0, 1]. A shape that can be read both ways is (H, W, C) for an array and (C, H, W) for
            a tensor.

    Raises:
        ValueError: the type, shape, dtype or range is another; a phrase to follow the name of the image.
    """
    if isinstance(image, Image.Image):
        return from_pil(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise ValueError(f"is of type {type(image).__name__}; it must be a PIL image, a NumPy array or a torch tensor")
    if isinstance(image, Tensor):
        return _in_range(_channels_first(image.detach().cpu().as_subclass(Tensor), last=False))
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise ValueError(f"is {image.dtype}, must be uint8 or floating-point in [0, 1]")
    return _in_range(_channels_first(torch.from_numpy(np.require(image, None, ["C", "W"])), last=True))


def to_bytes(image: Any) -> Tensor:
    """Return one image as (3, H, W) uint8; floats in [0, 1] are scaled to 0 to 255 and rounded. See `to_rgb`."""
    found = to_rgb(image)
    return found if found.dtype == torch.uint8 else found.mul(255.0).round_().to(torch.uint8)


def _channels_first(image: Tensor, *, last: bool) -> Tensor:
    shape = tuple(image.shape)
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3 and shape[2] in (1, 3) and (last or shape[0] not in (1, 3)):
        image = image.permute(2, 0, 1)
    elif image.ndim != 3 or shape[0] not in (1, 3):
        alpha = "; leave the alpha channel out" if image.ndim == 3 and 4 in (shape[0], shape[2]) else ""
        raise ValueError(f"has shape {shape}, must be {SHAPES}{alpha}")
    if not image.numel():
        raise ValueError(f"has shape {shape}, which has no pixels")
    return image.expand(3, -1, -1).contiguous()


def _in_range(image: Tensor) -> Tensor:
    """Return uint8 unchanged and floats as float32 in [0, 1]."""
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"is {str(image.dtype).removeprefix('torch.')}, must be uint8 or floating-point in [0, 1]")
    low, high = image.min().item(), image.max().item()
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        raise ValueError(
            f"has values from {low:.3g} to {high:.3g}, must be in [0, 1]: leave Normalize out, since encoders "
            "normalize their input, or divide by 255"
        )
    return image.to(torch.float32).clamp(0.0, 1.0)
