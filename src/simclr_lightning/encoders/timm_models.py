"""Any timm model as an encoder, through the ``timm`` extra."""

import difflib
from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor, nn

from simclr_lightning.encoders.normalise import Normalise

# what would read files, fetch them, or change what comes out
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
    """A timm model without its classifier; made by ``timm_encoder``, which documents the arguments.

    Attributes:
        feature_dim: F, the width of h.
        spec: the plain keyword arguments that make it again.
        size: side in pixels of the evaluation crop it was trained for, when loaded from an export.
        model: timm's own module.
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
        # some models widen their features after pooling
        self.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.spec = spec
        self.normalise = Normalise()
        self.model: nn.Module = model
        self.set_normalisation(mean, std)

    @property
    def body(self) -> nn.Module:
        """The module whose state dict has timm's keys."""
        return self.model

    def set_normalisation(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Replace the input normalisation, None for none."""
        self.normalise.set(mean, std, like=next(self.parameters(), None))
        self.spec["mean"] = None if mean is None else [float(value) for value in mean]
        self.spec["std"] = None if std is None else [float(value) for value in std]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return h (N, F) of x (N, 3, H, W), floats in [0, 1]."""
        h_NF: Tensor = self.model(self.normalise(x_NCHW))
        if h_NF.ndim != 2:
            raise ValueError(
                f"{self.spec['name']} returns features of shape {tuple(h_NF.shape)}, not (N, F); leave its pooling on"
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
    """Return a timm model as an encoder, x (N, 3, H, W) in [0, 1] -> h (N, feature_dim).

    Args:
        name: timm's name of the model, with or without a tag (``resnet18``,
            ``vit_tiny_patch16_224.augreg_in21k``).
        pretrained: start from timm's weights (downloaded); their normalisation is set where mean is None.
        mean, std: normalisation of the input, as in ``resnet``.
        options: plain keyword arguments of that model, such as ``img_size=32`` or ``drop_path_rate=0.1``.

    Raises:
        ValueError: timm is missing, does not know the name, or does not take the options.
    """
    try:
        import timm
    except ImportError:
        raise ValueError(
            "this encoder comes from timm, which is missing: pip install 'simclr-lightning[timm]'"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    refused = sorted(_REFUSED & options.keys())
    if refused:
        raise ValueError(f"timm options not taken here: {', '.join(refused)}; use model.weights to start from a file")
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # timm raises many kinds; all mean that the name and options do not work
        reason = str(error).strip().splitlines()[:1]
        raise ValueError(f"timm could not make {name}: {' '.join(reason) or type(error).__name__}") from error
    if pretrained and mean is None and std is None:
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    spec = {"factory": "timm", "name": name, **options}
    return TimmEncoder(model, spec, mean=mean, std=std)
