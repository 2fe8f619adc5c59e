"""References in torchvision for tests of encoders."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def torchvision_resnet(depth: int, seed: int = 0, **options: Any) -> nn.Module:
    """Return torchvision's ResNet with random weights, gammas, betas and statistics."""
    torch.manual_seed(seed)
    model: nn.Module = getattr(torchvision.models, f"resnet{depth}")(**options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                assert tensor is not None
                tensor.normal_(0, 0.1)
    return model.eval()


def features_of(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Return the input of the classifier in torchvision's network."""
    model.fc = nn.Identity()
    with torch.inference_mode():
        return model(x_NCHW)  # type: ignore[no-any-return]
