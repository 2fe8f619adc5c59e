"""Where the images come from: every source gives `Splits` of image sets."""

from simclr_lightning.data.arrays import array
from simclr_lightning.data.datamodule import ViewsDataModule
from simclr_lightning.data.describe import described
from simclr_lightning.data.disk.decode import ImageError, read_image
from simclr_lightning.data.folders import FolderImages, folder
from simclr_lightning.data.images import ImageSet, Splits, TensorImages
from simclr_lightning.data.packing import pack
from simclr_lightning.data.packs import PackedImages, packed
from simclr_lightning.data.photographs import photos
from simclr_lightning.data.public import cifar10, cifar100, fashion_mnist, imagenet, stl10

__all__ = [
    "FolderImages",
    "ImageError",
    "ImageSet",
    "PackedImages",
    "Splits",
    "TensorImages",
    "ViewsDataModule",
    "array",
    "cifar10",
    "cifar100",
    "described",
    "fashion_mnist",
    "folder",
    "imagenet",
    "pack",
    "packed",
    "photos",
    "read_image",
    "stl10",
]
