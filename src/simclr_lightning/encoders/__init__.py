"""Make encoders, which map images to features h, and load weights into them; projectors are elsewhere.

``residual`` holds ResNets, ``timm_models`` and ``torchvision_models`` make encoders of the models of those libraries,
and ``own`` of the user's: all three as a ``model_encoder``. ``encoder`` joins all kinds, ``normalize`` normalizes their
input, ``weights`` reads files with weights, and ``check`` checks any module that is to be trained as an encoder.

Every encoder takes x (N, 3, H, W), floats in [0, 1], and returns h (N, ``feature_dim``). ``build`` makes a new one from
its ``spec``, a plain dictionary. The state dict of its ``body`` has the keys of torchvision, timm or the user's module.
"""

from simclr_lightning.encoders.check import check_encoder, feature_dim, pooled
from simclr_lightning.encoders.encoder import Encoder, as_encoder, build
from simclr_lightning.encoders.model_encoder import ModelEncoder
from simclr_lightning.encoders.normalize import Normalize
from simclr_lightning.encoders.own import UntrustedError
from simclr_lightning.encoders.residual import ResNet, resnet
from simclr_lightning.encoders.timm_models import timm_encoder
from simclr_lightning.encoders.torchvision_models import torchvision_encoder
from simclr_lightning.encoders.weights import load_weights

__all__ = [
    "Encoder",
    "ModelEncoder",
    "Normalize",
    "ResNet",
    "UntrustedError",
    "as_encoder",
    "build",
    "check_encoder",
    "feature_dim",
    "load_weights",
    "pooled",
    "resnet",
    "timm_encoder",
    "torchvision_encoder",
]
