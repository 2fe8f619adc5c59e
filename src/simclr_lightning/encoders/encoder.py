"""Define the type of all encoders, and build one from its specification."""

from collections.abc import Mapping
from typing import Any

from simclr_lightning.encoders.residual import ResNet, resnet
from simclr_lightning.encoders.timm_models import TimmEncoder, timm_encoder

Encoder = ResNet | TimmEncoder


def build(spec: Mapping[str, Any]) -> Encoder:
    """Return a new encoder with random weights from the ``spec`` of another one. Nothing is downloaded.

    Args:
        spec: ``factory`` ("resnet" or "timm") and the keyword arguments of that factory, all plain values. The key
            ``pretrained`` is ignored.

    Raises:
        ValueError: the factory is unknown, or does not take the arguments.

    >>> build({"factory": "resnet", "depth": 18, "width": 0.5, "stem": "cifar"}).feature_dim
    256
    """
    arguments = {key: value for key, value in spec.items() if key not in ("factory", "pretrained")}
    factory = spec.get("factory")
    try:
        if factory == "resnet":
            return resnet(**arguments)
        if factory == "timm":
            return timm_encoder(**arguments)
    except TypeError as error:
        raise ValueError(f"the encoder's spec does not fit the factory {factory}: {error}") from None
    raise ValueError(f"the encoder's spec names the factory {factory!r}; it must be resnet or timm")
