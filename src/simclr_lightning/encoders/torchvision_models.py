"""Use any of torchvision's classification models as an encoder."""

from collections.abc import Sequence
from typing import Any, Final

import torchvision
from torch import nn

from simclr_lightning.encoders.model_encoder import ModelEncoder
from simclr_lightning.near_names import did_you_mean
from simclr_lightning.text import first_line

# Options that would download files, or change the output.
_REFUSED: Final = frozenset({"weights", "weights_backbone", "num_classes", "progress"})
# Their last layer is no Linear, or they return more than one Tensor in training.
_WITHOUT_LINEAR: Final = ("squeezenet", "googlenet", "inception")


def torchvision_encoder(
    name: str,
    *,
    pretrained: bool = False,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> ModelEncoder:
    """Return a torchvision model as an encoder, which maps x (N, 3, H, W) in [0, 1] to h (N, feature_dim).

    The last Linear layer, and the dropout in front of it, are replaced by identities; h is its input.

    Args:
        name: torchvision's name of a classification model, such as ``convnext_tiny`` or ``vit_b_16``.
        pretrained: download torchvision's weights and start from them. Without ``mean`` and ``std``, theirs are used.
        size: side of the images in pixels. A ViT is made for this size (torchvision's ``image_size``); other models
            ignore it.
        mean, std: normalization of the input, as in ``resnet``.
        options: plain keyword arguments of the model, such as ``image_size=32`` or ``stochastic_depth_prob=0.2``.

    Raises:
        ValueError: torchvision has no such model, or does not accept the options.

    >>> import torch
    >>> encoder = torchvision_encoder("shufflenet_v2_x0_5")
    >>> encoder(torch.rand(2, 3, 32, 32)).shape, encoder.feature_dim
    (torch.Size([2, 1024]), 1024)
    """
    check_name(name)
    refused = sorted(_REFUSED & options.keys())
    if refused:
        raise ValueError(f"not allowed as torchvision options: {', '.join(refused)}; for weights use pretrained=True")
    if size not in (None, 224) and name.startswith("vit_"):  # torchvision's ViTs are made for 224 pixels
        options = {"image_size": size, **options}
    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    try:
        model = torchvision_model(name, weights=weights, **options)
        classifier = last_linear(model)
    except Exception as error:  # torchvision raises many types for a wrong option
        raise ValueError(f"torchvision cannot create {name}: {first_line(error)}") from error
    if weights is not None and mean is None and std is None:
        mean, std = weights.transforms().mean, weights.transforms().std
    width = remove_classifier(model, classifier)
    return ModelEncoder(model, {"factory": "torchvision", "name": name, **options}, width, mean=mean, std=std)


def check_name(name: str) -> None:
    """Refuse a name that is not one of the classification models that can be an encoder.

    Raises:
        ValueError: the message has the nearest names.
    """
    names = [
        found
        for found in torchvision.models.list_models(module=torchvision.models)
        if not found.startswith(_WITHOUT_LINEAR)
    ]
    if name not in names:
        raise ValueError(f"torchvision has no encoder {name!r}{did_you_mean(name, names, count=3)}")


def torchvision_model(name: str, *, weights: Any = None, **options: Any) -> nn.Module:
    """Return torchvision's model with its classifier, with random weights unless ``weights`` are given."""
    model: nn.Module = torchvision.models.get_model(name, weights=weights, **options)
    return model


def last_linear(model: nn.Module) -> str:
    """Return the name of the last Linear layer, which computes the scores of the classes."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def remove_classifier(model: nn.Module, classifier: str) -> int:
    """Replace a Linear layer, and the dropout in front of it, by identities, in place; return the width of its input.

    Args:
        model: the model.
        classifier: the name of the layer, as `last_linear` returns it.
    """
    parent_name, _, name = classifier.rpartition(".")
    parent: Any = model.get_submodule(parent_name)
    width: int = getattr(parent, name).in_features
    setattr(parent, name, nn.Identity())
    before = str(int(name) - 1) if name.isdigit() else ""
    if isinstance(parent, nn.Sequential) and isinstance(getattr(parent, before, None), nn.Dropout):
        setattr(parent, before, nn.Identity())
    return width
