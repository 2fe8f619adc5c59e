"""Public data sets: CIFAR-10 and -100, STL-10, Fashion-MNIST through torchvision, and ImageNet's folders.

Files that are not in `path` (./data by default) are downloaded there, with torchvision's progress bar. ImageNet is not
downloaded: users must agree to its license and place its folders themselves.
"""

import gzip
import http.client
import math
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from simclr_lightning.data.disk.decode import MAX_PIXELS
from simclr_lightning.data.disk.unreadable import OnCorrupt
from simclr_lightning.data.folders import folder
from simclr_lightning.data.images import Splits, TensorImages, in_memory, numbered
from simclr_lightning.data.paths import looked_in

DEFAULT_ROOT = Path("data")
SILENCE = 30  # seconds without a byte after which a download fails

T = TypeVar("T")


def cifar10(path: Path | str | None = None, *, seed: int = 0) -> Splits:
    """Return CIFAR-10: 50,000 training and 10,000 test images of 32 px in 10 classes.

    Args:
        path: the folder with cifar-10-batches-py/ or cifar-10-python.tar.gz, or to download into (170 MB).
        seed: chooses the held-out tenth of train (500 images of each class).

    Raises:
        ValueError: it is not there and cannot be downloaded.
    """
    return _cifar("cifar10", datasets.CIFAR10, path, seed)


def cifar100(path: Path | str | None = None, *, seed: int = 0) -> Splits:
    """Return CIFAR-100: 50,000 training and 10,000 test images of 32 px in 100 classes.

    Args:
        path: the folder with cifar-100-python/ or cifar-100-python.tar.gz, or to download into (170 MB).
        seed: chooses the held-out tenth of train (50 images of each class).

    Raises:
        ValueError: it is not there and cannot be downloaded.
    """
    return _cifar("cifar100", datasets.CIFAR100, path, seed)


def stl10(path: Path | str | None = None, *, seed: int = 0) -> Splits:
    """Return STL-10: 5,000 labeled and 100,000 unlabeled training images, 8,000 test images of 96 px, 10 classes.

    All 105,000 are for pretraining. The unlabeled ones have the label -1, and none of them is held out. They take
    2.9 GB of memory, and twice that while they are read.

    Args:
        path: the folder with stl10_binary/ or stl10_binary.tar.gz, or to download into (2.6 GB).
        seed: chooses the held-out tenth of the labeled images (50 of each class).

    Raises:
        ValueError: it is not there and cannot be downloaded.
    """

    def read(root: Path) -> tuple[Any, Any]:
        train = datasets.STL10(str(root), split="train+unlabeled", download=True)
        return train, datasets.STL10(str(root), split="test")

    train, test = _placed("stl10", path, read, f"{datasets.STL10.filename} from {datasets.STL10.url}")
    parts = [
        _images(part, torch.from_numpy(found.data), torch.from_numpy(found.labels.astype(np.int64)))
        for part, found in (("train", train), ("test", test))
    ]
    return in_memory("stl10", *parts, class_names=tuple(train.classes), seed=seed)


def fashion_mnist(path: Path | str | None = None, *, seed: int = 0) -> Splits:
    """Return Fashion-MNIST: 60,000 training and 10,000 test images of 28 px in 10 classes, gray converted to RGB.

    Args:
        path: the folder with the four idx files (.gz or not), or with them in FashionMNIST/raw/, or to
            download into (30 MB).
        seed: chooses the held-out tenth of train (600 images of each class).

    Raises:
        ValueError: it is not there and cannot be downloaded, or a file is damaged.
    """
    root = _root(path)
    raw = root / "FashionMNIST" / "raw"
    place = next((place for place in (root, raw) if _idx_files(place)), None)
    if place is None:
        by_hand = f"{', '.join(name for name, _ in datasets.FashionMNIST.resources)} from {_FASHION_MNIST}"
        _placed("fashion_mnist", path, lambda root: datasets.FashionMNIST(str(root), download=True), by_hand)
        place = raw
    parts = []
    for name, images_file, labels_file in zip(("train", "test"), *[iter(_idx_files(place))] * 2, strict=True):
        pixels, labels = _idx(images_file, 3), _idx(labels_file, 1)
        if len(pixels) != len(labels):
            raise ValueError(f"{labels_file}: {len(labels):,} labels for {len(pixels):,} images; download it again")
        parts.append(_images(name, pixels[:, None].expand(-1, 3, -1, -1), labels.long()))
    return in_memory("fashion_mnist", *parts, class_names=tuple(datasets.FashionMNIST.classes), seed=seed)


_FASHION_MNIST = "https://github.com/zalandoresearch/fashion-mnist"


def imagenet(
    path: Path | str | None,
    *,
    on_corrupt: OnCorrupt = "fail",
    max_skipped: int = 100,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
) -> Splits:
    """Return ImageNet (ILSVRC 2012), or a data set with the same folders: train/CLASS/*.JPEG and val/CLASS/*.JPEG.

    Args:
        path: the folder with train/ and val/, both with class folders.
        on_corrupt: as in `folder`; so are the others.
        max_skipped: see `folder`.
        max_pixels: see `folder`.
        seed: chooses the held-out tenth of train.

    Raises:
        ValueError: train/ or val/ is missing or has no class folders; and the errors of `folder`.
    """
    if path is None:
        raise ValueError("data=imagenet needs the folder with train/ and val/: data.path=DIR")
    root = Path(path).expanduser()
    if not root.is_dir():
        is_file = "is a file; data=imagenet reads a folder with train/ and val/"
        raise ValueError(
            f"data.path={root}: {is_file if root.exists() else f'there is no such folder{looked_in(root)}'}"
        )
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(
                f"data.path={root}: there is no {part}/ in it; data=imagenet reads train/CLASS/*.JPEG and "
                "val/CLASS/*.JPEG, unpacked from the archives of image-net.org"
            )
        if not any(entry.is_dir() for entry in (root / part).iterdir()):
            raise ValueError(
                f"data.path={root}: {part}/ has no class folders; sort its images into {part}/CLASS/ "
                "(for val/, by the list of ILSVRC2012_devkit_t12)"
            )
    return folder(root, on_corrupt=on_corrupt, max_skipped=max_skipped, max_pixels=max_pixels, seed=seed)


def _cifar(name: str, source: Any, path: Path | str | None, seed: int) -> Splits:
    def read(root: Path) -> tuple[Any, Any]:
        return source(str(root), train=True, download=True), source(str(root), train=False)

    train, test = _placed(name, path, read, f"{source.filename} from {source.url}")
    parts = [
        _images(part, torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets))
        for part, found in (("train", train), ("test", test))
    ]
    return in_memory(name, *parts, class_names=tuple(train.classes), seed=seed)


def _images(part: str, pixels: Tensor, labels: Tensor) -> TensorImages:
    return TensorImages(pixels, labels, numbered(f"{part}/", len(pixels)))


def _root(path: Path | str | None) -> Path:
    return DEFAULT_ROOT if path is None else Path(path).expanduser()


def _placed(name: str, path: Path | str | None, read: Callable[[Path], T], by_hand: str) -> T:
    """Read a data set from its folder, after downloading it if it is not there.

    Raises:
        ValueError: both failed; the message names the files to place in the folder.
    """
    root = _root(path)
    try:
        with _silence_limited():
            return read(root)
    except (
        OSError,
        RuntimeError,
        EOFError,
        tarfile.TarError,
        zlib.error,
        http.client.HTTPException,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[-1]
        raise ValueError(
            f"data={name}: not in {root.absolute()}, and the download failed ({reason}).\n"
            f"Place {by_hand} in that folder, or set data.path to the folder that holds it."
        ) from None


@contextmanager
def _silence_limited() -> Iterator[None]:
    """Limit the time that a download waits for a server: torchvision's would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _idx_files(place: Path) -> list[Path]:
    """The four files of Fashion-MNIST in a folder, plain or .gz; an empty list when one is missing."""
    found = []
    for name, _ in datasets.FashionMNIST.resources:
        plain = place / name.removesuffix(".gz")
        found += [file for file in (plain, place / name) if file.is_file()][:1]
    return found if len(found) == len(datasets.FashionMNIST.resources) else []


def _idx(file: Path, dimensions: int) -> Tensor:
    """The uint8 array of an idx file, whose head is 0, 0, 8 (unsigned bytes), the number of dimensions, and sizes."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        kind, *shape = struct.unpack_from(f">{1 + dimensions}I", data)
        values = np.frombuffer(bytearray(data), dtype=np.uint8, offset=4 * (1 + dimensions))
        if kind != 0x800 + dimensions or values.size != math.prod(shape) or values.size == 0:
            raise ValueError("its head and its length do not match")
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise ValueError(f"{file}: not an idx file, or damaged ({error}); download it again") from None
    return torch.from_numpy(values).view(shape)
