"""Define the type of all encoders, build one from its specification, and make one from any module."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn

from simclr_lightning.encoders.check import feature_dim
from simclr_lightning.encoders.model_encoder import ModelEncoder
from simclr_lightning.encoders.own import make_own
from simclr_lightning.encoders.residual import ResNet, resnet
from simclr_lightning.encoders.timm_models import timm_encoder
from simclr_lightning.encoders.torchvision_models import torchvision_encoder

Encoder = ResNet | ModelEncoder

FACTORIES: Final = {"resnet": resnet, "timm": timm_encoder, "torchvision": torchvision_encoder}
"""The functions that ``build`` calls, by the name in a ``spec``."""


def build(spec: Mapping[str, Any], *, trusted: Sequence[str] = ()) -> Encoder:
    """Return a new encoder with random weights from the ``spec`` of another one. Nothing is downloaded.

    Args:
        spec: ``factory`` ("resnet", "timm" or "torchvision") and the keyword arguments of that factory, all plain
            values, of which ``pretrained`` is ignored. Or the recipe of an encoder of the user (`own`).
        trusted: packages of the user whose code may be imported and called.

    Raises:
        UntrustedError: the factory is a dotted name in no trusted package; nothing was imported.
        ValueError: the factory is unknown, or does not take the arguments.

    >>> build({"factory": "resnet", "depth": 18, "width": 0.5, "stem": "cifar"}).feature_dim
    256
    """
    factory = spec.get("factory")
    if isinstance(factory, str) and factory in FACTORIES:
        arguments = {key: value for key, value in spec.items() if key not in ("factory", "pretrained")}
        try:
            return FACTORIES[factory](**arguments)  # type: ignore[operator]
        except TypeError as error:
            raise ValueError(f"the encoder's spec does not fit the factory {factory}: {error}") from None
    if not ("." in factory if isinstance(factory, str) else "arguments" in spec):
        raise ValueError(f"the encoder's spec names the factory {factory!r}; it must be {', '.join(FACTORIES)}")
    return as_encoder(make_own(spec, trusted), spec)


def as_encoder(module: nn.Module, recipe: Mapping[str, Any], *, size: int = 32, channels: int = 3) -> Encoder:
    """Return any module as an encoder: one of this package as it is, another one as a `ModelEncoder` that shares it.

    Args:
        module: maps images (B, C, S, S) to (B, F) or (B, F, h, w).
        recipe: from which ``build`` makes the same module; ignored for an encoder of this package.
        size: S of the dry pass that finds F if neither the module nor the recipe has ``feature_dim``.
        channels: C of that pass.

    Raises:
        ValueError: the dry pass fails.

    >>> as_encoder(nn.Conv2d(3, 8, 3), {"factory": None}).feature_dim
    8
    """
    module = getattr(module, "_orig_mod", module)  # removes the wrapper of torch.compile
    if isinstance(module, ResNet | ModelEncoder):
        return module
    known = recipe.get("feature_dim") if not hasattr(module, "feature_dim") else None
    width = known if isinstance(known, int) else feature_dim(module, size=size, channels=channels)
    return ModelEncoder(module, {**recipe, "feature_dim": width}, width, mean=recipe.get("mean"), std=recipe.get("std"))
