"""The ways to make views that views.py compares: this package, torchvision, lightly, kornia and albumentations.

Each function takes the size, 32 or 224 pixels, and returns its candidates. It raises ImportError where its package is
not installed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as TF
import torchvision.transforms.v2.functional as TF2
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from simclr_lightning.views import ViewRecipe, crop_views, finish_views, make_views, recipe, resize
from simclr_lightning.views.finish import finish_rows
from simclr_lightning.views.sampling import Colors, Crops

BICUBIC = T.InterpolationMode.BICUBIC
TURNS = 0.1  # hue shift, of a whole turn
Images = list[Any]


@dataclass(frozen=True)
class Candidate:
    """A way to make views: `views` takes the list that `prepare` returns for (3, H, W) tensors or for JPEGs."""

    name: str
    views: Callable[[Images], object]
    resize: Callable[[Tensor, int], Tensor]  # (3, H, W) uint8 -> (3, S, S) in levels
    hue: Callable[[Tensor], Tensor]  # (3, H, W) uint8 -> the same in levels, shifted by TURNS
    drawn_for: str
    prepare: Callable[[Images], Images] = list


def recipe_of(size: int) -> ViewRecipe:
    return recipe("simclr_cifar" if size == 32 else "simclr")


# ---------------------------------------------------------------- this package


def our_resize(image: Tensor, size: int) -> Tensor:
    box = torch.tensor([[0, 0, *image.shape[1:]]]).expand(2, 4)
    crops = Crops(box, torch.zeros(2, dtype=torch.bool))
    return resize.resize_crops(image[None], crops, size, "bicubic")[0, 0].float()


def our_hue(image: Tensor) -> Tensor:
    yes, no = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    factor = torch.tensor([[1.0, 1.0, 1.0, TURNS]]).expand(2, 4)
    colours = Colors(yes, factor, torch.arange(4).expand(2, 4), no, torch.zeros(2).double(), no)
    return finish_rows(image.expand(1, 2, -1, -1, -1), colours, recipe("simclr"))[0, 0] * 255


def ours(size: int) -> list[Candidate]:
    chosen = recipe_of(size)
    keys: dict[str, Any] = {"seed": 0, "epoch": 0}
    candidate = partial(Candidate, resize=our_resize, hue=our_hue, drawn_for="view")
    if size == 32:

        def batched(images: Images) -> object:
            return make_views(images[0], indices=torch.arange(len(images[0])), recipe=chosen, **keys)

        return [candidate("simclr-lightning", batched, prepare=lambda images: [torch.stack(images)])]

    def crops(jpegs: Images) -> Tensor:
        cut = [crop_views(decode_jpeg(jpeg), index=i, recipe=chosen, **keys) for i, jpeg in enumerate(jpegs)]
        return torch.stack(cut)

    def whole(jpegs: Images) -> object:
        return finish_views(crops(jpegs), indices=torch.arange(len(jpegs)), recipe=chosen, **keys)

    return [
        candidate("simclr-lightning, worker's part of the split", crops),
        candidate("simclr-lightning, all on the CPU", whole),
        candidate("decoding alone (torchvision)", lambda jpegs: [decode_jpeg(jpeg) for jpeg in jpegs], drawn_for="-"),
    ]


# ---------------------------------------------------------------- rivals


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def open_pil(jpeg: Tensor) -> Image.Image:
    return Image.open(io.BytesIO(jpeg.numpy().tobytes())).convert("RGB")


def levels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


def twice(transform: Callable[[Any], object], images: Images, read: Callable[[Any], Any] | None) -> object:
    return [(transform(x), transform(x)) for x in (map(read, images) if read else images)]


def jitter(kind: Any, chosen: ViewRecipe) -> Any:
    b, h = 0.8 * chosen.strength, 0.2 * chosen.strength
    return kind(b, b, b, h)


class PILBlur:
    """Pillow's blur with the recipe's range of sigma, as in many implementations."""

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0))))


def torchvision_v1(size: int) -> list[Candidate]:
    chosen = recipe_of(size)

    def transform(*blur: Any) -> Any:
        return T.Compose(
            [
                T.RandomResizedCrop(size, interpolation=BICUBIC),
                T.RandomHorizontalFlip(),
                T.RandomApply([jitter(T.ColorJitter, chosen)], 0.8),
                T.RandomGrayscale(0.2),
                *(T.RandomApply([b], 0.5) for b in blur),
                T.ToTensor(),
            ]
        )

    candidate = partial(
        Candidate,
        resize=lambda x, s: levels(TF.resize(to_pil(x), [s, s], BICUBIC)),
        hue=lambda x: levels(TF.adjust_hue(to_pil(x), TURNS)),
        drawn_for="view",
    )
    if size == 32:
        views = partial(twice, transform(), read=None)
        return [candidate("torchvision v1 on PIL", views, prepare=lambda images: [to_pil(x) for x in images])]
    return [
        candidate("torchvision v1, PIL's blur", partial(twice, transform(PILBlur()), read=open_pil)),
        candidate(
            "torchvision v1, 23 px kernel",
            partial(twice, transform(T.GaussianBlur(23, (0.1, 2.0))), read=open_pil),
        ),
    ]


def torchvision_v2(size: int) -> list[Candidate]:
    chosen = recipe_of(size)
    blur = [v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5)] if chosen.blur else []
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([jitter(v2.ColorJitter, chosen)], 0.8),
            v2.RandomGrayscale(0.2),
            *blur,
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return [
        Candidate(
            "torchvision v2 per sample",
            partial(twice, transform, read=None if size == 32 else decode_jpeg),
            lambda x, s: TF2.resize(x, [s, s], BICUBIC, antialias=True).float(),
            lambda x: TF2.adjust_hue(x, TURNS).float(),
            "view",
        )
    ]


def lightly(size: int) -> list[Candidate]:
    from lightly.transforms import SimCLRTransform

    chosen = recipe_of(size)
    whole = SimCLRTransform(input_size=size, cj_strength=chosen.strength, gaussian_blur=chosen.blur, normalize=None)
    for view in whole.transforms:
        view.transform.transforms[0].interpolation = BICUBIC  # bilinear by default
    prepare = (lambda images: [to_pil(x) for x in images]) if size == 32 else list
    read = (lambda x: x) if size == 32 else open_pil
    return [
        Candidate(
            "lightly",
            lambda images: [whole(read(x)) for x in images],
            lambda x, s: levels(TF.resize(to_pil(x), [s, s], BICUBIC)),
            lambda x: levels(TF.adjust_hue(to_pil(x), TURNS)),
            "view",
            prepare,
        )
    ]


def kornia(size: int) -> list[Candidate]:
    import kornia.augmentation as K
    from kornia.enhance import adjust_hue

    chosen = recipe_of(size)
    b, h = 0.8 * chosen.strength, 0.2 * chosen.strength
    blur = [K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5)] if chosen.blur else []
    transform = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), resample="BICUBIC", cropping_mode="slice"),
        K.RandomHorizontalFlip(),
        K.ColorJiggle(b, b, b, h, p=0.8),
        K.RandomGrayscale(p=0.2),
        *blur,
    )

    def views(images: Images) -> object:
        x = images[0] if size == 32 else torch.stack([decode_jpeg(jpeg) for jpeg in images])
        x = x.float().div_(255)
        return transform(x), transform(x)

    def whole(x: Tensor, s: int) -> Tensor:
        ratio = x.shape[2] / x.shape[1]
        crop = K.RandomResizedCrop((s, s), (1.0, 1.0), (ratio, ratio), resample="BICUBIC", cropping_mode="slice")
        return crop(x[None].float() / 255)[0].clamp(0, 1) * 255

    return [
        Candidate(
            "kornia, batched",
            views,
            whole,
            lambda x: adjust_hue(x[None].float() / 255, TURNS * 2 * torch.pi)[0] * 255,
            "strength: view, order: batch",
            (lambda images: [torch.stack(images)]) if size == 32 else list,
        )
    ]


def albumentations(size: int) -> list[Candidate]:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    chosen = recipe_of(size)
    b, h = 0.8 * chosen.strength, 0.2 * chosen.strength
    reach = (max(0.0, 1 - b), 1 + b)
    blur = [A.GaussianBlur((23, 23), (0.1, 2.0), p=0.5)] if chosen.blur else []
    filters = {"interpolation": cv2.INTER_CUBIC, "area_for_downscale": "image"}
    transform = A.Compose(
        [
            A.RandomResizedCrop((size, size), **filters),
            A.HorizontalFlip(),
            A.ColorJitter(reach, reach, reach, (-h, h), p=0.8),
            A.ToGray(p=0.2),
            *blur,
            A.ToFloat(255),
            A.ToTensorV2(),
        ]
    )

    def view(image: np.ndarray) -> Tensor:
        return transform(image=image)["image"]

    def read(jpeg: Tensor) -> np.ndarray:
        return decode_jpeg(jpeg).permute(1, 2, 0).numpy()

    def apply(operation: Any, x: Tensor) -> Tensor:
        out = operation(image=np.ascontiguousarray(x.permute(1, 2, 0).numpy()))["image"]
        return torch.from_numpy(out).permute(2, 0, 1).float()

    still = (1.0, 1.0)
    return [
        Candidate(
            "albumentations",
            partial(twice, view, read=None if size == 32 else read),
            lambda x, s: apply(A.Resize(s, s, **filters, p=1.0), x),
            lambda x: apply(A.ColorJitter(still, still, still, (TURNS, TURNS), p=1.0), x),
            "view",
            (lambda images: [np.ascontiguousarray(x.permute(1, 2, 0).numpy()) for x in images]) if size == 32 else list,
        )
    ]
