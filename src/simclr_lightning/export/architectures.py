"""Find the name of an encoder's architecture in timm and in torchvision, and the formats that can express it."""

from collections.abc import Mapping
from typing import Any

from simclr_lightning.encoders import Encoder
from simclr_lightning.export.card import title_of


def timm_name(encoder: Encoder) -> tuple[str, dict[str, Any]] | None:
    """Return timm's name and arguments for the architecture of the encoder; None if timm does not have it."""
    spec = encoder.spec
    if spec["factory"] == "timm":
        return spec["name"], _options(spec)
    if not _is_standard_resnet(spec):
        return None
    return ("resnet18", {"layers": [1, 1, 1, 1]}) if spec["depth"] == 10 else (f"resnet{spec['depth']}", {})


def torchvision_name(encoder: Encoder) -> tuple[str, dict[str, Any]] | None:
    """Return torchvision's name and arguments for the architecture of the encoder; None if it does not have it."""
    spec = encoder.spec
    if spec["factory"] == "torchvision":
        return spec["name"], _options(spec)
    return (f"resnet{spec['depth']}", {}) if _is_standard_resnet(spec) and spec["depth"] != 10 else None


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in spec.items() if k not in ("factory", "name", "mean", "std", "pretrained")}


def _is_standard_resnet(spec: Mapping[str, Any]) -> bool:
    return spec["factory"] == "resnet" and spec["stem"] == "imagenet" and spec["width"] == 1


def described(encoder: Encoder) -> str:
    """Return the architecture as text for a message."""
    spec = encoder.spec
    if spec["factory"] == "resnet":
        return f"ResNet-{spec['depth']} of width {spec['width']:g} with the stem for {spec['stem']}"
    return title_of(encoder).partition(",")[0]


def possible_formats(encoder: Encoder) -> str:
    """Return the formats that can express the encoder, as text for a message."""
    names = ["safetensors", *(["torchvision"] if torchvision_name(encoder) else [])]
    return ", ".join([*names, *(["timm"] if timm_name(encoder) else []), "onnx or hub"])
