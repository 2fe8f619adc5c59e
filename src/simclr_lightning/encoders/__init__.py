"""Make encoders, which map images to features h, and load weights into them; projectors are elsewhere.

``residual`` holds ResNets, ``timm_models`` wraps timm's models, ``encoder`` joins both kinds, ``normalize`` normalizes
their input, ``weights`` reads files with weights, and ``check`` checks any module that is to be trained as an encoder.

Every encoder takes x (N, 3, H, W), floats in [0, 1], and returns h (N, ``feature_dim``). ``build`` makes a new one from
its ``spec``, a plain dictionary. The state dict of its ``body`` has the keys of torchvision or timm.
"""

from simclr_lightning.encoders.check import check_encoder, feature_dim, pooled
from simclr_lightning.encoders.encoder import Encoder, build
from simclr_lightning.encoders.normalize import Normalize
from simclr_lightning.encoders.residual import ResNet, resnet
from simclr_lightning.encoders.timm_models import TimmEncoder, timm_encoder
from simclr_lightning.encoders.weights import load_weights

__all__ = [
    "Encoder",
    "Normalize",
    "ResNet",
    "TimmEncoder",
    "build",
    "check_encoder",
    "feature_dim",
    "load_weights",
    "pooled",
    "resnet",
    "timm_encoder",
]
