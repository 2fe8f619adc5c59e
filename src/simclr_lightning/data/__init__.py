"""Sources of images: each is a function that returns `Splits`.

`folders`, `packs`, `arrays`, `public`, `photographs` and `hugging_face` are the sources, `images` has what they return,
`describe` and `aspects` the lines that are printed about it. `packing` writes packed folders. `disk` reads files.

`adapt` makes `Splits` of any data of a user: `items`, `labels`, `columns` and `pixels` read them. `datamodule` makes
batches of views: `order` chooses the images of each, `samples` makes one sample in a worker, `loading` starts the
workers, `finishing` makes views in this process, and `seeding` seeds the code of users.
"""

from typing import TYPE_CHECKING, Final

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.data.adapt import splits_of as splits_of
    from simclr_lightning.data.arrays import array as array
    from simclr_lightning.data.datamodule import ViewsDataModule as ViewsDataModule
    from simclr_lightning.data.describe import described as described
    from simclr_lightning.data.disk.decode import ImageError as ImageError, read_image as read_image
    from simclr_lightning.data.finishing import centred as centred
    from simclr_lightning.data.folders import FolderImages as FolderImages, folder as folder
    from simclr_lightning.data.hugging_face import hf as hf
    from simclr_lightning.data.images import ImageSet as ImageSet, Splits as Splits, TensorImages as TensorImages
    from simclr_lightning.data.packing import pack as pack
    from simclr_lightning.data.packs import PackedImages as PackedImages, packed as packed
    from simclr_lightning.data.photographs import photos as photos
    from simclr_lightning.data.public import (
        cifar10 as cifar10,
        cifar100 as cifar100,
        fashion_mnist as fashion_mnist,
        imagenet as imagenet,
        stl10 as stl10,
    )

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

_NO_SOURCES: Final = ("centred", "described", "pack", "read_image", "splits_of")
SOURCES: Final = tuple(name for name in __all__ if name.islower() and name not in _NO_SOURCES)
"""The functions that give `Splits`, by the names that ``data=`` has for them."""
