"""Images so long that both views are nearly always cut from the same box: counted before training."""

import math
from collections.abc import Iterable
from functools import lru_cache

from simclr_lightning.data.disk.decode import quiet
from simclr_lightning.data.disk.unreadable import in_threads
from simclr_lightning.data.folders import FolderImages
from simclr_lightning.data.images import ImageSet
from simclr_lightning.data.packs import PackedImages
from simclr_lightning.views import ViewRecipe
from simclr_lightning.views.sampling import TRIES, VIEWS

LOOKED_INTO = 2_000  # images of a set on disk: a fraction of a second
NEARLY_ALWAYS = 0.9
_POINTS = 100  # of the integral over the aspect


@lru_cache(maxsize=4096)
def one_box_chance(height: int, width: int, recipe: ViewRecipe) -> float:
    """Return the probability that both views of an image are cut from the one centered box of `sample_crops`.

    A crop of area a and aspect r (width / height) fits when its rounded sides sqrt(a / r) and sqrt(a r) are at most
    the image's. A view takes the centered box when no crop of `TRIES` fits.

    >>> from simclr_lightning.views import recipe
    >>> [round(one_box_chance(100, width, recipe("simclr")), 2) for width in (100, 500, 1000, 1400, 1700)]
    [0.0, 0.05, 0.61, 0.95, 1.0]

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        recipe: its `crop`, `area` and `aspect` count.
    """
    if recipe.crop != "random":
        return 0.0
    smallest, largest = (part * height * width for part in recipe.area)
    low, high = (math.log(aspect) for aspect in recipe.aspect)
    fits = 0.0
    for point in range(_POINTS):
        aspect = math.exp(low + (high - low) * (point + 0.5) / _POINTS)
        limit = min((height + 0.5) ** 2 * aspect, (width + 0.5) ** 2 / aspect)
        span = largest - smallest
        fits += min(1.0, max(0.0, (limit - smallest) / span)) if span else float(limit >= smallest)
    return (1 - fits / _POINTS) ** (TRIES * VIEWS)


def long_images(images: ImageSet, recipe: ViewRecipe, count: int) -> list[str]:
    """Return a line about the images whose two views are nearly always cut from the same box; none without such images.

    Sizes come from the headers of up to `LOOKED_INTO` files at even distances; rotation by EXIF is ignored.

    Args:
        images: a set in memory, a folder or a packed folder; nothing is known of the sizes in others.
        recipe: of the views.
        count: how many images are trained on, from the first on.
    """
    if recipe.crop != "random":
        return []
    rows, sizes = _sizes(images, count)
    known = [(row, size) for row, size in zip(rows, sizes, strict=True) if size is not None]
    found = [(row, size) for row, size in known if one_box_chance(*size, recipe) >= NEARLY_ALWAYS]
    if not found:
        return []
    row, (height, width) = max(found, key=lambda one: max(one[1]) / min(one[1]))
    return [
        f"{len(found):,} of {len(known):,} images looked into are so long that both views are nearly always cut from "
        f"the same box (e.g. {images.names[row]}, {width} x {height} pixels): cut them into shorter pieces, or lower "
        f"the first number of views.area ({recipe.area[0]:g})"
    ]


def _sizes(images: ImageSet, count: int) -> tuple[range, Iterable[tuple[int, int] | None]]:
    """Some rows, and (height, width) of each."""
    if images.tensor is not None:
        height, width = images.tensor.shape[2:]
        return range(count), [(height, width)] * count
    if not isinstance(images, FolderImages | PackedImages):
        return range(0), ()
    rows = range(0, count, -(-count // LOOKED_INTO) or 1)
    with quiet():
        return rows, list(in_threads(images.size, rows))
