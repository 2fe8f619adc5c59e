"""Where the images come from: every source gives `Splits` of image sets."""

from typing import TYPE_CHECKING, Final

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.data.arrays import array as array
    from simclr_lightning.data.datamodule import ViewsDataModule as ViewsDataModule
    from simclr_lightning.data.datamodule import centred as centred
    from simclr_lightning.data.disk.decode import ImageError as ImageError
    from simclr_lightning.data.disk.decode import read_image as read_image
    from simclr_lightning.data.folders import FolderImages as FolderImages
    from simclr_lightning.data.folders import folder as folder
    from simclr_lightning.data.images import ImageSet as ImageSet
    from simclr_lightning.data.images import Splits as Splits
    from simclr_lightning.data.images import TensorImages as TensorImages
    from simclr_lightning.data.packing import pack as pack
    from simclr_lightning.data.packs import PackedImages as PackedImages
    from simclr_lightning.data.packs import packed as packed
    from simclr_lightning.data.photographs import photos as photos
    from simclr_lightning.data.public import cifar10 as cifar10
    from simclr_lightning.data.public import cifar100 as cifar100
    from simclr_lightning.data.public import fashion_mnist as fashion_mnist
    from simclr_lightning.data.public import imagenet as imagenet
    from simclr_lightning.data.public import stl10 as stl10

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

SOURCES: Final = tuple(name for name in __all__ if name.islower() and name not in ("centred", "pack", "read_image"))
"""The functions that give `Splits`, by the names that ``data=`` has for them."""
