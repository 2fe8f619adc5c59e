"""Export an encoder as safetensors, torchvision, timm, ONNX or Hugging Face hub files, each with a card.

``own`` writes and reads the format of this library, ``formats`` writes those of other libraries, ``card`` the card.
"""

from simclr_lightning.export.card import read_sections
from simclr_lightning.export.formats import FORMATS, ExportError, export_as
from simclr_lightning.export.own import CARD_NAME, export_encoder, load_encoder

__all__ = ["CARD_NAME", "FORMATS", "ExportError", "export_as", "export_encoder", "load_encoder", "read_sections"]
