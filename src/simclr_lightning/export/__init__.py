"""Export an encoder as safetensors, torchvision, timm, ONNX or Hugging Face hub files, each with a card.

``own`` writes and reads the format of this library, ``formats`` writes those of other libraries, ``card`` the card.
``architectures`` finds the name of an architecture in other libraries.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.encoders.weights import find_export as find_export
    from simclr_lightning.export.card import read_sections as read_sections
    from simclr_lightning.export.formats import FORMATS as FORMATS, ExportError as ExportError, export_as as export_as
    from simclr_lightning.export.own import (
        CARD_NAME as CARD_NAME,
        export_encoder as export_encoder,
        load_encoder as load_encoder,
    )

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
