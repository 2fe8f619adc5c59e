"""Use any timm model as an encoder; needs the extra ``timm``."""

from collections.abc import Sequence
from typing import Any, Final

from simclr_lightning.encoders.model_encoder import ModelEncoder
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


def timm_encoder(
    name: str,
    *,
    pretrained: bool = False,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> ModelEncoder:
    """Return a timm model as an encoder, which maps x (N, 3, H, W) in [0, 1] to h (N, feature_dim).

    Args:
        name: timm's name of the model, with or without a tag (``resnet18``, ``vit_tiny_patch16_224.augreg_in21k``).
        pretrained: download timm's weights and start from them. Without ``mean`` and ``std``, theirs are used.
        size: side of the images in pixels. A model for images of one size, such as a ViT, is made for this size
            (timm's ``img_size``); other models ignore it.
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
    about = timm.get_pretrained_cfg(name)
    if size is not None and about is not None and about.fixed_input_size and about.input_size[-1] != size:
        options = {"img_size": size, **options}
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:  # timm raises many types for a wrong name or option
        raise ValueError(f"timm cannot create {name}: {first_line(error)}") from error
    if pretrained and mean is None and std is None:
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    # The head of some models widens the features after pooling.
    width = int(getattr(model, "head_hidden_size", None) or model.num_features)
    return ModelEncoder(model, {"factory": "timm", "name": name, **options}, width, mean=mean, std=std)
