"""Encoders, image -> h: ResNets and timm models, and the weights they may start from; no heads.

Every encoder takes x (N, 3, H, W), floats in [0, 1], and returns h (N, ``feature_dim``). Its ``spec`` is a
plain dictionary from which ``build`` makes it again, its ``body`` the module whose state dict has the
library's own keys.
"""

from collections.abc import Mapping
from typing import Any

from simclr_lightning.encoders.normalise import Normalise
from simclr_lightning.encoders.residual import ResNet, resnet
from simclr_lightning.encoders.timm_models import TimmEncoder, timm_encoder
from simclr_lightning.encoders.weights import load_weights

Encoder = ResNet | TimmEncoder


def build(spec: Mapping[str, Any]) -> Encoder:
    """Return a new, untrained encoder from what another's ``spec`` holds.

    Args:
        spec: ``factory`` ("resnet" or "timm") and that factory's keyword arguments, all plain values. Nothing
            is ever downloaded for a spec.

    Raises:
        ValueError: an unknown factory, or arguments that it does not take.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("factory", "pretrained")}
    factory = spec.get("factory")
    try:
        if factory == "resnet":
            return resnet(**arguments)
        if factory == "timm":
            return timm_encoder(**arguments)
    except TypeError as error:
        raise ValueError(f"the encoder's spec does not fit {factory}: {error}") from None
    raise ValueError(f"the encoder's spec names the factory {factory!r}; resnet and timm are known")


__all__ = [
    "Encoder",
    "Normalise",
    "ResNet",
    "TimmEncoder",
    "build",
    "load_weights",
    "resnet",
    "timm_encoder",
]
