"""The encoder for others: this library's safetensors, torchvision, timm, ONNX, a hub's folder, each with its card."""

from simclr_lightning.export.card import read_sections
from simclr_lightning.export.formats import FORMATS, ExportError, export_as
from simclr_lightning.export.own import CARD_NAME, export_encoder, load_encoder

__all__ = ["CARD_NAME", "FORMATS", "ExportError", "export_as", "export_encoder", "load_encoder", "read_sections"]
