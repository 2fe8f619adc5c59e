"""uint8 images and keys -> two views.

    make_views(images, ...) == finish_views(torch.stack([crop_views(image, ...) for image in images]), ...)

bit for bit on one device: the crop, its flip and its resize are rounded to uint8, so a loader's workers can cut crops
of images of any size and the rest can happen batched, on another device. Every parameter is a hash of (seed, epoch,
index, view, operation): a view's bits do not depend on the batch around it.
"""

from simclr_lightning.views.make import centre_view, crop_views, finish_views, make_views
from simclr_lightning.views.recipe import ViewRecipe, recipe

__all__ = ["ViewRecipe", "centre_view", "crop_views", "finish_views", "make_views", "recipe"]
