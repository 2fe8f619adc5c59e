"""Sources of images: each is a function that returns `Splits`.

`folders`, `packs`, `arrays`, `public` and `photographs` are the sources, `images` has what they return, `describe` and
`aspects` the lines that are printed about it. `packing` writes packed folders. `datamodule` and `loading` make batches
of views. `disk` reads files.
"""

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
