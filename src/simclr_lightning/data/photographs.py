"""`data=photos`: small patches of the photographs in the wheels of scikit-image and scikit-learn.

Nothing is downloaded. The class of a patch is its photograph: a network that has learned textures and colors can
separate the classes.

Every photograph is split by columns, from left to right. Between two parts are SEAM columns that no patch contains:

    | held-out strip | training patches ........ | 70 % line | test patches |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simclr_lightning.data.disk.decode import read_image
from simclr_lightning.data.images import PATCH_STREAM, PackedNames, Splits, TensorImages, digest
from simclr_lightning.random import permutation

# Class name -> (package, file inside it). All are in scikit-image's and scikit-learn's wheels.
PICTURES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "immunohistochemistry": ("skimage", "data/ihc.png"),
    "moon": ("skimage", "data/moon.png"),
    "page": ("skimage", "data/page.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "stereo_motorcycle": ("skimage", "data/motorcycle_left.png"),
    "text": ("skimage", "data/text.png"),
}

SHORT_SIDE = 256  # px
TRAIN_SHARE = 0.7  # of the columns
# Columns left out on each side of a border. A resized pixel is a bicubic mixture of the photograph's pixels up to 2
# resized columns away (3 where it is enlarged). So with 4 columns on each side, no original pixel is in two parts.
SEAM = 4


@dataclass(frozen=True)
class Columns:
    """The columns of each part of a photograph, as (first, one past the last)."""

    held_out: tuple[int, int]
    train: tuple[int, int]
    test: tuple[int, int]


def columns(width: int, *, size: int) -> Columns:
    """Return the parts of a photograph `width` px wide for patches of `size` px; they share no column.

    Raises:
        ValueError: a part is narrower than a patch.
    """
    line = round(TRAIN_SHARE * width)
    strip = size + size // 4
    parts = Columns((0, strip), (strip + 2 * SEAM, line - SEAM), (line + SEAM, width))
    if any(last - first < size for first, last in (parts.train, parts.test)):
        raise ValueError(
            f"data.dataset.size={size}: a photograph {width} px wide is too narrow for training and test patches "
            f"of {size} px next to each other; choose at most 64"
        )
    return parts


def corners(part: tuple[int, int], height: int, *, size: int, count: int, seed: int, stream: int) -> Tensor:
    """Return (count, 2) int64 (x, y) of upper left corners; they are distinct, and all places are equally likely.

    Raises:
        ValueError: the part has fewer than `count` places.
    """
    wide, high = part[1] - part[0] - size + 1, height - size + 1
    if count > wide * high:
        raise ValueError(
            f"data: {count} patches a photograph are more than its {wide * high} places; "
            "lower data.dataset.train_per_class or data.dataset.test_per_class"
        )
    place = permutation(wide * high, seed=seed, epoch=stream)[:count]
    return torch.stack((part[0] + place % wide, place // wide), dim=1)


def photograph(name: str) -> Tensor:
    """Return a photograph by class name: (3, H, W) uint8 with a short side of SHORT_SIDE px (bicubic, antialiased).

    Raises:
        ValueError: the file is missing in the installed package.
    """
    package, file = PICTURES[name]
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        project = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise ValueError(
            f"data=photos: {file} is not in the installed {project}; "
            f"reinstall it from the registry: pip install --force-reinstall {project}"
        )
    image = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    scale = SHORT_SIDE / min(image.size)
    wide, high = (round(scale * side) for side in image.size)
    resized = image.resize((wide, high), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def photos(
    path: Path | str | None = None,
    *,
    size: int = 32,
    train_per_class: int = 300,
    test_per_class: int = 100,
    seed: int = 0,
) -> Splits:
    """Return patches of 18 photographs and textures; the class is the photograph.

    Each photograph is resized to 256 px on its short side (`page`, 191 px, and `text`, 172 px, are enlarged). Gray
    ones get three equal channels. Training patches come from the left 70 % of the columns, test patches from the right
    30 %. A tenth of the training patches is the held-out part, from a separate strip at the left edge. No pixel,
    resized or original, is in two of the three parts. Patches of one part may overlap; no two are equal.

    Args:
        path: must be None: the pictures are in the installed wheels.
        size: side of a patch in px, 8 to 64.
        train_per_class: training patches of each photograph, with the held-out tenth; at least 10.
        test_per_class: test patches of each photograph; at least 1.
        seed: chooses the places of the patches.

    Raises:
        ValueError: an option is out of its range, or a picture is missing in a wheel.
    """
    _check(path, size=size, train_per_class=train_per_class, test_per_class=test_per_class)
    held = train_per_class // 10
    train: list[Tensor] = []
    test: list[Tensor] = []
    train_names: list[str] = []
    test_names: list[str] = []
    for label, name in enumerate(PICTURES):
        image = photograph(name)
        parts = columns(image.shape[2], size=size)
        places = []
        for offset, (part, count) in enumerate(
            ((parts.train, train_per_class - held), (parts.held_out, held), (parts.test, test_per_class))
        ):
            stream = PATCH_STREAM - 3 * label - offset
            places.append(corners(part, image.shape[1], size=size, count=count, seed=seed, stream=stream))
        train_places, test_places = torch.cat(places[:2]), places[2]
        train.append(_cut(image, train_places, size))
        test.append(_cut(image, test_places, size))
        train_names += _names(f"train/{name}", train_places)
        test_names += _names(f"test/{name}", test_places)
    train_set = _labelled(train, train_names)
    test_set = _labelled(test, test_names)
    number_in_class = torch.arange(train_per_class).repeat(len(PICTURES))
    return Splits(
        train=train_set,
        test=test_set,
        held_out=torch.nonzero(number_in_class >= train_per_class - held)[:, 0],
        class_names=tuple(PICTURES),
        identity=digest(
            "photos",
            train_set.names,
            train_set.labels,
            train_set.tensor,
            test_set.names,
            test_set.labels,
            test_set.tensor,
        ),
        notes=(
            f"photos: {size} px patches of {len(PICTURES)} pictures from scikit-image and scikit-learn, "
            f"{SHORT_SIDE} px on the short side (page and text are enlarged to that).",
        ),
    )


def _check(path: Path | str | None, *, size: int, train_per_class: int, test_per_class: int) -> None:
    if path is not None:
        raise ValueError(
            f"data=photos reads the pictures in the installed packages and has no data.path ({path}); "
            "for your own images: data=folder or data=array"
        )
    for key, value, low, high in (
        ("size", size, 8, 64),
        ("train_per_class", train_per_class, 10, 5000),
        ("test_per_class", test_per_class, 1, 2000),
    ):
        if not low <= value <= high:
            raise ValueError(f"data.dataset.{key}={value}: must be from {low} to {high}")


def _cut(image: Tensor, corners_N2: Tensor, size: int) -> Tensor:
    """(N, 3, size, size): the patches of one photograph."""
    return torch.stack([image[:, y : y + size, x : x + size] for x, y in corners_N2.tolist()])


def _names(prefix: str, corners_N2: Tensor) -> list[str]:
    """Names with the corner in them, so that a picture of neighbors shows the place of each patch."""
    return [f"{prefix}/{number:04d}-x{x:03d}-y{y:03d}" for number, (x, y) in enumerate(corners_N2.tolist())]


def _labelled(patches: Sequence[Tensor], names: Sequence[str]) -> TensorImages:
    labels = torch.repeat_interleave(torch.arange(len(patches)), torch.tensor([len(p) for p in patches]))
    return TensorImages(torch.cat(list(patches)), labels, PackedNames(names))
