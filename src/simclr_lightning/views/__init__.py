"""Make two augmented views of every uint8 image.

``recipe`` holds the settings, ``sampling`` draws the parameters, ``resize`` cuts the crops, ``finish`` changes the
colors and blurs with the operations in ``kernels``, and ``make`` joins these steps.

    make_views(images, ...) == finish_views(torch.stack([crop_views(image, ...) for image in images]), ...)

Both sides are equal bit for bit on one device. Crops are rounded to uint8, so loader workers can cut them from images
of any size, and the other operations can run batched on another device. Every parameter is a hash of (seed, epoch,
index, view, operation), so a view does not depend on the batch that it is made in.
"""

from simclr_lightning.views.make import centre_view, crop_views, finish_views, make_views
from simclr_lightning.views.recipe import ViewRecipe, recipe

__all__ = ["ViewRecipe", "centre_view", "crop_views", "finish_views", "make_views", "recipe"]
