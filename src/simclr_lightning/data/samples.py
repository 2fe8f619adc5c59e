"""Make one sample of a batch, in a loader worker or in this process: a key, two crops, two views or a central crop.

Legend: n images of this process's part, S the side of a view in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from simclr_lightning.data.images import ImageSet
from simclr_lightning.data.items import load_keyed, warn_of_own_generator
from simclr_lightning.data.pixels import to_rgb
from simclr_lightning.data.seeding import seeded
from simclr_lightning.views import ViewRecipe, centre_view, crop_views

Key = tuple[int, int]  # epoch, index
Sample = tuple[Any, ...]  # epoch, index, and a tensor for images that are not in memory
InputKind = Literal["pil", "tensor"]

# "epoch": int, "indices": (n,) int64 on the CPU, "part": "train" or "test", "single": whether each image has one view,
# "device", and for sets that are not in memory one of "crops": (n, 2, 3, S, S) uint8; "made": (n, 2, 3, S, S) uint8 or
# float32 in [0, 1], the views of `Augmentation`; "centers": (n, 3, S, S) uint8.
Batch = dict[str, Any]


@dataclass(frozen=True)
class Augmentation:
    """A user's function of one image that makes a view, in place of the recipe.

    Args:
        function: takes an image and returns a view of ``size`` x ``size`` pixels, as a PIL image, an array or a tensor,
            uint8 or floating-point in [0, 1].
        size: side of a view in pixels.
        given: what the function takes: "pil", an RGB image, or "tensor", (3, H, W) uint8.
    """

    function: Callable[[Any], Any]
    size: int
    given: InputKind = "pil"

    def views(self, image: Tensor, *, seed: int, epoch: int, index: int) -> Tensor:
        """Return two views (2, 3, S, S) of an image (3, H, W) uint8; view v depends on (seed, epoch, index, v) only.

        Raises:
            ValueError: the function raised an error, or returned no view.
        """
        made = [self._view(image, seed=seed, epoch=epoch, index=index, view=view) for view in range(2)]
        return torch.stack(_one_dtype(made))

    def check(self, image: Tensor) -> None:
        """Make the views of an image twice, so that a wrong function is refused now, and warn if they differ.

        Raises:
            ValueError: as `views`.
        """
        first, second = (self.views(image, seed=0, epoch=0, index=0) for _ in range(2))
        if not torch.equal(first, second):
            warn_of_own_generator("augment")

    def _view(self, image: Tensor, *, seed: int, epoch: int, index: int, view: int) -> Tensor:
        given: Any = image.clone()
        if self.given == "pil":
            given = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        try:
            with seeded(seed=seed, epoch=epoch, index=index, view=view):
                found = self.function(given)
        except Exception as error:  # the user's code may raise anything
            other = {"pil": "tensor", "tensor": "pil"}[self.given]
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"augment failed on image {index}: {text}; it was given a {_KINDS[self.given]}: for a "
                f"{_KINDS[other]} pass augment_input={other!r}"
            ) from error
        try:
            view_3SS = to_rgb(found)
        except ValueError as error:
            raise ValueError(f"augment: the view of image {index} {error}") from None
        if view_3SS.shape[1:] != (self.size, self.size):
            height, width = view_3SS.shape[1:]
            raise ValueError(
                f"augment: the view of image {index} has {width} x {height} pixels, and the recipe {self.size} x "
                f"{self.size}: return that size, or change the size of the recipe"
            )
        return view_3SS


_KINDS = {"pil": "PIL image", "tensor": "tensor (3, H, W) uint8"}


class Keys(Dataset[Sample]):
    """Samples of a set in memory: (epoch, index); the pixels are gathered on the device."""

    def __getitem__(self, key: Key) -> Sample:
        return key


class Crops(Dataset[Sample]):
    """Samples of a set on disk: an image is decoded once, and both crops are cut from it as uint8."""

    field = "crops"

    def __init__(self, images: ImageSet, recipe: ViewRecipe, seed: int) -> None:
        self.images = images
        self.recipe = recipe
        self.seed = seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        image = load_keyed(self.images, index, seed=self.seed, epoch=epoch)
        crops = crop_views(image, seed=self.seed, epoch=epoch, index=index, recipe=self.recipe)
        return epoch, index, crops


class Augmented(Dataset[Sample]):
    """Samples whose two views a user's function makes."""

    field = "made"

    def __init__(self, images: ImageSet, augmentation: Augmentation, seed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        image = load_keyed(self.images, index, seed=self.seed, epoch=epoch)
        return epoch, index, self.augmentation.views(image, seed=self.seed, epoch=epoch, index=index)


class Centers(Dataset[Sample]):
    """Samples for evaluation: (epoch, index, central crop (3, S, S) uint8); of a set in memory (epoch, index)."""

    field = "centers"

    def __init__(self, images: ImageSet, size: int) -> None:
        self.images = images
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        if self.images.tensor is not None:
            return 0, index
        view = centre_view(self.images.load(index)[None], size=self.size)[0]
        return 0, index, view.mul_(255.0).round_().to(torch.uint8)  # views are whole multiples of 1/255


def collated(samples: list[Sample], field: str, part: str) -> Batch:
    """Return the batch of some samples."""
    # The epoch stays a plain int: a tensor would be moved to the device and read back from it.
    indices = torch.tensor([sample[1] for sample in samples])
    batch: Batch = {"epoch": samples[0][0], "indices": indices, "part": part, "single": field == Centers.field}
    if len(samples[0]) == 3:
        batch[field] = torch.stack(_one_dtype([cast(Tensor, sample[2]) for sample in samples]))
    return batch


def _one_dtype(images: list[Tensor]) -> list[Tensor]:
    """Return the images as they are if all are uint8 or all are floats, else all as floats in [0, 1]."""
    if len({image.dtype for image in images}) == 1:
        return images
    return [image.div(255.0) if image.dtype == torch.uint8 else image for image in images]
