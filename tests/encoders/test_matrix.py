"""Twelve encoders of torchvision, timm and the test itself are trained, resumed, exported and loaded again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import _api, convnext, efficientnet, regnet, swin_transformer, vision_transformer

from conftest import small_splits
from simclr_lightning import NTXent, Projector, Schedule, SimCLR, ViewRecipe, ViewsDataModule
from simclr_lightning.encoders import check_encoder, feature_dim, pooled, timm_encoder, torchvision_encoder
from simclr_lightning.export import export_encoder, load_encoder

SIZE = 32
IMAGES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
BLOCKS = [efficientnet.MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0), efficientnet.MBConvConfig(4, 3, 2, 8, 16, 1, 1.0, 1.0)]

# torchvision's architectures with few and narrow blocks, and the path of their last layer
SMALL: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "efficientnet_small": (partial(efficientnet.EfficientNet, BLOCKS, 0.2), "classifier.1"),
    "convnext_small_test": (
        partial(convnext.ConvNeXt, [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]),
        "classifier.2",
    ),
    "swin_small": (partial(swin_transformer.SwinTransformer, [4, 4], 8, [1, 1], [2, 2], [2, 2]), "head"),
    "regnet_small": (partial(regnet.RegNet, regnet.BlockParams.from_init_params(4, 8, 4.0, 2.0, 8)), "fc"),
    "vit_small": (partial(vision_transformer.VisionTransformer, 224, 4, 1, 2, 16, 32), "heads.head"),
}


def _builder(name: str) -> Callable[..., nn.Module]:
    def build(*, weights: Any = None, image_size: int = 224, **options: Any) -> nn.Module:
        make = SMALL[name][0]
        if name == "vit_small":
            make = partial(vision_transformer.VisionTransformer, image_size, 4, 1, 2, 16, 32)
        return make(**options)

    build.__module__ = "torchvision.models.small"
    return build


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in SMALL:
            patch.setitem(_api.BUILTIN_MODELS, name, _builder(name))
        yield


class Maps(nn.Module):
    """A feature map (B, width, h, w), which is averaged by others."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class WithoutBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feature_dim = 6
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.GroupNorm(2, 6), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).amax((2, 3))  # type: ignore[no-any-return]


class WithDropout(nn.Module):
    def __init__(self, *, width: int, drop: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, width), nn.Dropout(drop), nn.Linear(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(torchvision_encoder, name, size=SIZE) for name in SMALL},
    **{name: partial(timm_encoder, name, size=SIZE) for name in ("test_resnet", "test_convnext", "test_efficientnet")},
    "vit_tiny_patch16_224": partial(timm_encoder, "vit_tiny_patch16_224", size=SIZE, patch_size=8, depth=1),
    "Maps": partial(Maps, width=7),
    "WithoutBatchNorm": WithoutBatchNorm,
    "WithDropout": partial(WithDropout, width=9),
}
ARGUMENTS: dict[str, dict[str, Any]] = {"Maps": {"width": 7}, "WithDropout": {"width": 9}}


def fit(encoder: nn.Module, *, steps: int, resume: Path | None = None) -> L.Trainer:
    data = ViewsDataModule(small_splits, batch_size=8, recipe=ViewRecipe(size=SIZE, blur=0.0), seed=1)
    module = SimCLR(
        encoder, Projector(feature_dim(encoder, size=SIZE), out_dim=4), NTXent(0.5),
        partial(torch.optim.SGD, lr=0.01), Schedule("constant", 0), global_batch_size=8,
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_trained_resumed_exported_and_loaded_with_the_same_h(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[name]()
    width = check_encoder(encoder, IMAGES)
    trainer = fit(encoder, steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    resumed = ENCODERS[name]()
    assert not torch.equal(next(resumed.parameters()), next(encoder.parameters()))
    assert fit(resumed, steps=4, resume=tmp_path / "last.ckpt").global_step == 4
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {f"encoder.{key}" for key in resumed.state_dict()} == {key for key in saved if key.startswith("encoder.")}

    folder = tmp_path / "exported"
    export_encoder(resumed, folder, size=SIZE, arguments=ARGUMENTS.get(name))
    loaded = load_encoder(folder, trusted=[__name__])
    with torch.inference_mode():
        h = pooled(resumed.eval()(IMAGES))
        assert torch.equal(loaded(IMAGES), h)
        assert h.shape == (3, width) == (3, loaded.feature_dim)
    if name in ARGUMENTS or name == "WithoutBatchNorm":
        with torch.inference_mode():
            assert torch.equal(load_encoder(folder, encoder=ENCODERS[name]())(IMAGES), h)


@pytest.mark.parametrize("name", SMALL)
def test_h_of_a_torchvision_model_is_the_input_of_its_last_layer(name: str) -> None:
    encoder = torchvision_encoder(name, size=SIZE).eval()
    theirs = _builder(name)(image_size=SIZE).eval()
    missing, unexpected = theirs.load_state_dict(encoder.body.state_dict(), strict=False)
    assert sorted(missing) == [f"{SMALL[name][1]}.{part}" for part in ("bias", "weight")]
    assert not unexpected
    seen: list[Tensor] = []
    theirs.get_submodule(SMALL[name][1]).register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    with torch.inference_mode():
        theirs(IMAGES)
        assert torch.equal(encoder(IMAGES), seen[0])


def test_a_vit_is_made_for_the_size_of_the_views() -> None:
    assert torchvision_encoder("vit_small", size=SIZE).spec["image_size"] == SIZE
    assert "image_size" not in torchvision_encoder("vit_small", size=224).spec
    assert timm_encoder("test_vit", size=48).spec["img_size"] == 48
    assert "img_size" not in timm_encoder("test_vit", size=160).spec  # its own size
    assert timm_encoder("test_vit", size=48, img_size=32).spec["img_size"] == 32
    assert "img_size" not in timm_encoder("test_resnet", size=48).spec


def test_torchvision_faults_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"no encoder 'convnext_tinny'; did you mean .*convnext_tiny"):
        torchvision_encoder("convnext_tinny")
    with pytest.raises(ValueError, match="no encoder 'squeezenet1_0'"):
        torchvision_encoder("squeezenet1_0")
    with pytest.raises(ValueError, match="not allowed as torchvision options: num_classes"):
        torchvision_encoder("vit_small", num_classes=3)
    with pytest.raises(ValueError, match=r"cannot create resnet18: .*color"):
        torchvision_encoder("resnet18", color="blue")
