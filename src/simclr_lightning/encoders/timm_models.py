"""Use any timm model as an encoder; needs the extra ``timm``."""

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor, nn

from simclr_lightning.encoders.normalize import Normalize
from simclr_lightning.extras import require
from simclr_lightning.near_names import did_you_mean
from simclr_lightning.text import first_line

# Options that would read or download files, or change the output.
_REFUSED: Final = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "features_only",
        "num_classes",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
    }
)


class TimmEncoder(nn.Module):
    """A timm model without its classifier. Use ``timm_encoder`` to make one; its docstring has the arguments.

    Attributes:
        feature_dim: F, the width of h.
        spec: plain keyword arguments from which ``build`` makes the same model.
        size: side in pixels of the evaluation crop, if the model comes from an export; else None.
        model: the model that timm made.
    """

    def __init__(
        self,
        model: Any,
        spec: dict[str, Any],
        *,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.size: int | None = None
        # The head of some models widens the features after pooling.
        self.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.spec = spec
        self.normalise = Normalize()
        self.model: nn.Module = model
        self.set_normalisation(mean, std)

    @property
    def body(self) -> nn.Module:
        """The module whose state dict has timm's keys."""
        return self.model

    def set_normalisation(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Replace the input normalization by mean and std, three numbers each, or remove it with None."""
        self.normalise.set(mean, std, like=next(self.parameters(), None))
        self.spec["mean"] = None if mean is None else [float(value) for value in mean]
        self.spec["std"] = None if std is None else [float(value) for value in std]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the features h (N, F) of images x (N, 3, H, W), floats in [0, 1].

        Raises:
            ValueError: the model returns maps (N, F, h, w) and no vectors.
        """
        h_NF: Tensor = self.model(self.normalise(x_NCHW))
        if h_NF.ndim != 2:
            raise ValueError(
                f"{self.spec['name']} returns features of shape {tuple(h_NF.shape)}, not (N, F); do not disable its "
                "pooling (global_pool)"
            )
        return h_NF


def timm_encoder(
    name: str,
    *,
    pretrained: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> TimmEncoder:
    """Return a timm model as an encoder, which maps x (N, 3, H, W) in [0, 1] to h (N, feature_dim).

    Args:
        name: timm's name of the model, with or without a tag (``resnet18``, ``vit_tiny_patch16_224.augreg_in21k``).
        pretrained: download timm's weights and start from them. Without ``mean`` and ``std``, theirs are used.
        mean, std: normalization of the input, as in ``resnet``.
        options: plain keyword arguments of the model, such as ``img_size=32`` or ``drop_path_rate=0.1``.

    Raises:
        ValueError: timm is not installed, has no such model, or does not accept the options.
    """
    require("timm", "this encoder")
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models(), count=3)}")
    refused = sorted(_REFUSED & options.keys())
    if refused:
        raise ValueError(f"not allowed as timm options: {', '.join(refused)}; use model.weights to start from a file")
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # timm raises many types for a wrong name or option
        raise ValueError(f"timm cannot create {name}: {first_line(error)}") from error
    if pretrained and mean is None and std is None:
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    spec = {"factory": "timm", "name": name, **options}
    return TimmEncoder(model, spec, mean=mean, std=std)
