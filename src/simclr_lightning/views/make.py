"""Make views: images to crops, crops to views, and the center crop for evaluation.

Shapes: N images, H and W their height and width, V = 2 views, R = V N rows, S side of a view in pixels.
"""

import torch
from torch import Tensor

from simclr_lightning.views.finish import finish_rows
from simclr_lightning.views.recipe import ViewRecipe, recipe as named_recipe
from simclr_lightning.views.resize import resize_crops
from simclr_lightning.views.sampling import VIEWS, Crops, sample_colors, sample_crops, sample_crops_of_one

__all__ = ["centre_view", "crop_views", "finish_views", "make_views"]


def make_views(
    images: Tensor, *, seed: int, epoch: int, indices: Tensor, recipe: ViewRecipe | str
) -> tuple[Tensor, Tensor]:
    """Make two random views of each of N images (paper section 2.1 and appendix A).

    Args:
        images: (N, 3, H, W) uint8, on any device.
        seed: the seed of the run.
        epoch: the number of the epoch.
        indices: (N,) int64, the positions of the images in the data set; best on the CPU, where they are used.
        recipe: a `ViewRecipe` or the name of one.

    Returns:
        (x_a, x_b), each (N, 3, S, S) float32 in [0, 1] on the device of `images`.

    Raises:
        ValueError: a tensor has a wrong shape or dtype, or no recipe has this name.

    >>> images = torch.zeros(4, 3, 48, 64, dtype=torch.uint8)
    >>> x_a, x_b = make_views(images, seed=0, epoch=0, indices=torch.arange(4), recipe="simclr_cifar")
    >>> x_a.shape, x_b.dtype
    (torch.Size([4, 3, 32, 32]), torch.float32)
    """
    chosen = _resolve(recipe)
    _check_images(images, "images", 4)
    _check_count(indices, len(images))
    if chosen.crop == "centre":
        crops_NV3SS = _center_crops(images, chosen.size)
    else:
        height, width = images.shape[2:]
        crops = sample_crops(height, width, seed=seed, epoch=epoch, indices=indices, recipe=chosen)
        crops_NV3SS = resize_crops(images, crops, chosen.size, chosen.interpolation)
    return finish_views(crops_NV3SS, seed=seed, epoch=epoch, indices=indices, recipe=chosen)


def crop_views(image: Tensor, *, seed: int, epoch: int, index: int, recipe: ViewRecipe | str) -> Tensor:
    """Cut, flip and resize the two crops of one image, (2, 3, S, S) uint8; loader workers call this.

    Args:
        image: (3, H, W) uint8.
        seed: the seed of the run.
        epoch: the number of the epoch.
        index: the position of the image in the data set.
        recipe: a `ViewRecipe` or the name of one.

    Raises:
        ValueError: `image` has a wrong shape or dtype, or no recipe has this name.
    """
    _check_images(image, "image", 3)
    chosen = _resolve(recipe)
    if chosen.crop == "centre":
        return _center_crops(image[None], chosen.size)[0]
    height, width = image.shape[1:]
    crops = sample_crops_of_one(height, width, seed=seed, epoch=epoch, index=index, recipe=chosen)
    return resize_crops(image[None], crops, chosen.size, chosen.interpolation)[0]


def finish_views(
    crops: Tensor, *, seed: int, epoch: int, indices: Tensor, recipe: ViewRecipe | str
) -> tuple[Tensor, Tensor]:
    """Turn the crops of N images into views: color jitter, grayscale, blur and solarization, batched.

    Args:
        crops: (N, 2, 3, S, S) uint8 from `crop_views`, on any device.
        seed: the seed of the run.
        epoch: the number of the epoch.
        indices: (N,) int64, the positions of the images in the data set.
        recipe: a `ViewRecipe` or the name of one.

    Returns:
        (x_a, x_b), each (N, 3, S, S) float32 in [0, 1] on the device of `crops`.

    Raises:
        ValueError: a tensor has a wrong shape or dtype, or no recipe has this name.
    """
    chosen = _resolve(recipe)
    expected = (len(indices), VIEWS, 3, chosen.size, chosen.size)
    if crops.dtype != torch.uint8 or crops.dim() != 5 or crops.shape[1:] != expected[1:]:
        raise ValueError(f"crops must be (N, {', '.join(map(str, expected[1:]))}) uint8, not {_describe(crops)}")
    _check_count(indices, len(crops))
    colors = sample_colors(seed=seed, epoch=epoch, indices=indices, recipe=chosen)
    x_a, x_b = finish_rows(crops, colors, chosen)
    return x_a, x_b


def _resolve(recipe: ViewRecipe | str) -> ViewRecipe:
    return named_recipe(recipe) if isinstance(recipe, str) else recipe


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _check_images(images: Tensor, name: str, dims: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != dims or images.shape[-3] != 3:
        shape = "(N, 3, H, W)" if dims == 4 else "(3, H, W)"
        raise ValueError(f"{name} must be {shape} uint8, not {_describe(images)}")


def _check_count(indices: Tensor, count: int) -> None:
    if len(indices) != count:
        raise ValueError(f"indices must hold one number per image; it holds {len(indices)} for {count} images")


def _center_crops(images: Tensor, size: int) -> Tensor:
    """Return the center crop of each image twice, (N, 2, 3, S, S) uint8."""
    levels = centre_view(images, size=size).mul_(255.0).round_().to(torch.uint8)
    return levels[:, None].expand(-1, VIEWS, -1, -1, -1).contiguous()


def centre_view(images: Tensor, *, size: int) -> Tensor:
    """Return the evaluation crop of N images: the center square, resized with a bicubic filter.

    The square has 87.5 % of the shorter side. Images of at most 32 x 32 pixels are resized whole.

    Args:
        images: (N, 3, H, W) uint8.
        size: side S of the result in pixels.

    Returns:
        (N, 3, S, S) float32 in [0, 1], whole multiples of 1/255, on the device of `images`.

    Raises:
        ValueError: `images` has a wrong shape or dtype.

    >>> centre_view(torch.zeros(2, 3, 96, 128, dtype=torch.uint8), size=64).shape
    torch.Size([2, 3, 64, 64])
    """
    _check_images(images, "images", 4)
    height, width = images.shape[2:]
    side = min(height, width)
    h = w = max(1, round(0.875 * side))
    if max(height, width) <= 32:
        h, w = height, width
    top, left = (height - h) // 2, (width - w) // 2
    if (h, w) == (size, size):
        view = images[:, :, top : top + h, left : left + w]
    else:
        rows = VIEWS * len(images)
        box = torch.tensor([[top, left, h, w]], device="cpu").expand(rows, -1)
        crops = Crops(box, torch.zeros(rows, dtype=torch.bool, device="cpu"))
        view = resize_crops(images, crops, size, "bicubic")[:, 0]
    return view.to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
