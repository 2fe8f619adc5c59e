"""Make views in this process: of some rows of a set for scores and pictures, and of what workers have made."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from simclr_lightning import machine
from simclr_lightning.data.images import ImageSet
from simclr_lightning.data.items import load_keyed
from simclr_lightning.data.samples import Augmentation
from simclr_lightning.views import ViewRecipe, centre_view, crop_views, finish_views, make_views


def centred(images: ImageSet, indices: Tensor, *, size: int) -> Tensor:
    """Return evaluation views (b, 3, size, size) float in [0, 1] of the images at ``indices`` (b,)."""
    if images.tensor is not None:
        return centre_view(images.tensor[indices], size=size)
    with ThreadPoolExecutor(machine.cores()) as threads:  # decoding releases Python's lock
        views = threads.map(lambda i: centre_view(images.load(i)[None], size=size), indices.tolist())
        return torch.cat(list(views))


def view_pairs(
    images: ImageSet, indices: Tensor, *, seed: int, epoch: int, recipe: ViewRecipe, augmentation: Augmentation | None
) -> tuple[Tensor, Tensor]:
    """Return both views of the images at ``indices`` (n,), each (n, 3, S, S) float32 in [0, 1]."""
    if augmentation is None and images.tensor is not None:
        return make_views(images.tensor[indices], seed=seed, epoch=epoch, indices=indices, recipe=recipe)
    rows = indices.tolist()
    loaded = ((row, load_keyed(images, row, seed=seed, epoch=epoch)) for row in rows)
    if augmentation is not None:
        made = [floats(augmentation.views(image, seed=seed, epoch=epoch, index=row)) for row, image in loaded]
        return as_pair(torch.stack(made))
    crops = [crop_views(image, seed=seed, epoch=epoch, index=row, recipe=recipe) for row, image in loaded]
    return finish_views(torch.stack(crops), seed=seed, epoch=epoch, indices=indices, recipe=recipe)


def floats(views: Tensor) -> Tensor:
    """Return views as float32 in [0, 1]; uint8 is divided by 255."""
    return views.to(torch.float32).div_(255.0) if views.dtype == torch.uint8 else views


def as_pair(views_N23SS: Tensor) -> tuple[Tensor, Tensor]:
    """Return both views of N images, each (N, 3, S, S) float32 in [0, 1]."""
    x_a, x_b = floats(views_N23SS).unbind(1)
    return x_a.contiguous(), x_b.contiguous()


def fits(tensor: Tensor, device: torch.device) -> bool:
    """Return whether a tensor takes at most a tenth of the free memory of a GPU; on the CPU it is there already."""
    if device.type != "cuda":
        return device.type == "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    return tensor.numel() * tensor.element_size() <= free / 10
