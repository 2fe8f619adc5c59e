"""Make an encoder from a model of timm, of torchvision or of the user, without its classifier."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from simclr_lightning.encoders.check import pooled
from simclr_lightning.encoders.normalize import Normalize


class ModelEncoder(nn.Module):
    """Normalize images, run a model, and pool its feature maps.

    ``timm_encoder``, ``torchvision_encoder`` and ``as_encoder`` make one.

    Args:
        model: maps images (N, 3, H, W) to (N, F) or (N, F, h, w).
        spec: plain values from which ``build`` makes the same encoder; ``mean`` and ``std`` are added.
        feature_dim: F, the width of h.
        mean, std: normalization of the input, as in ``resnet``.

    Attributes:
        feature_dim: F.
        spec: plain values from which ``build`` makes the same encoder.
        size: side in pixels of the evaluation crop, if the model comes from an export; else None.
        body: the model, whose state dict is exported.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: dict[str, Any],
        feature_dim: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.size: int | None = None
        self.feature_dim = feature_dim
        self.spec = spec
        self.normalise = Normalize()
        self.model = model
        self.set_normalisation(mean, std)

    @property
    def body(self) -> nn.Module:
        """The model, whose state dict has the keys of its library."""
        return self.model

    def set_normalisation(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Replace the input normalization by mean and std, three numbers each, or remove it with None."""
        self.normalise.set(mean, std, like=next(self.parameters(), None))
        self.spec["mean"] = None if mean is None else [float(value) for value in mean]
        self.spec["std"] = None if std is None else [float(value) for value in std]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the features h (N, F) of images x (N, 3, H, W), floats in [0, 1].

        Raises:
            ValueError: the model returns neither (N, F) nor (N, F, h, w).
        """
        return pooled(self.model(self.normalise(x_NCHW)))
