"""An encoder normalizes its input, is built again from its spec, and may come from timm."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from made_encoders import MEAN, STD
from torch import Tensor, nn

from simclr_lightning.encoders import Encoder, build, resnet, timm_encoder


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def test_normalization_is_inside_and_not_in_the_state_dict(images: Tensor) -> None:
    plain, inside = resnet(18, 0.25), resnet(18, 0.25, mean=MEAN, std=STD)
    inside.load_state_dict(plain.state_dict(), strict=True)
    by_hand = torchvision.transforms.functional.normalize(images, MEAN, STD)
    plain.eval(), inside.eval()
    assert torch.equal(inside(images), plain(by_hand))
    assert not torch.equal(inside(images), plain(images))
    inside.set_normalisation(None, None)
    assert torch.equal(inside(images), plain(images))


def test_normalization_follows_the_encoder_to_its_device_and_dtype() -> None:
    encoder = resnet(10, 0.25, mean=MEAN, std=STD).double()
    assert encoder.normalise.mean is not None
    assert encoder.normalise.mean.dtype == torch.float64
    encoder.set_normalisation(STD, MEAN)
    assert encoder.normalise.mean.dtype == torch.float64
    assert encoder(torch.rand(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert encoder.to("meta").normalise.mean.device.type == "meta"


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(resnet, 50, 0.25, "cifar", zero_init_last=False, mean=MEAN, std=STD),
        functools.partial(resnet, 10, 0.5),
        functools.partial(timm_encoder, "resnet10t", mean=MEAN, std=STD),
        functools.partial(timm_encoder, "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2),
    ],
)
def test_build_makes_the_same_encoder_from_its_spec(make: Callable[[], Encoder]) -> None:
    encoder = make()
    again = build(encoder.spec)
    assert again.spec == encoder.spec
    again.load_state_dict(encoder.state_dict(), strict=True)
    x_NCHW = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(x_NCHW), encoder.eval()(x_NCHW))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"factory": "os.system"},
        {"factory": "resnet", "depth": 18, "command": "ls"},
        {"factory": "resnet", "depth": []},
        {"factory": "resnet", "width": "2"},
        {"factory": "timm"},
        {"factory": "timm", "name": "hf-hub:someone/model"},
        {"factory": "timm", "name": "local-dir:/tmp"},
        {"factory": "timm", "name": "resnet10t", "checkpoint_path": "/tmp/x"},
        {"factory": "timm", "name": "resnet10t", "pretrained_cfg": {"url": "http://x"}},
    ],
)
def test_a_spec_that_is_not_ours_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"spec|timm"):
        build(spec)


def test_a_spec_never_downloads() -> None:
    assert "pretrained" not in build({"factory": "timm", "name": "resnet10t", "pretrained": True}).spec


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),  # its features are wider after pooling
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
    ],
)
def test_any_timm_model_is_an_encoder(name: str, options: dict[str, Any]) -> None:
    encoder = timm_encoder(name, **options).eval()
    theirs = timm.create_model(name, num_classes=0, **options).eval()
    theirs.load_state_dict(encoder.body.state_dict(), strict=True)
    x_NCHW = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        h_NF = encoder(x_NCHW)
        assert torch.equal(h_NF, theirs(x_NCHW))
    assert h_NF.shape == (2, encoder.feature_dim)


def test_timm_pretrained_brings_its_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", offline)
    assert timm_encoder("resnet10t", pretrained=True).spec["mean"] == [0.485, 0.456, 0.406]
    assert timm_encoder("resnet10t", pretrained=True, mean=MEAN, std=STD).spec["mean"] == list(MEAN)
    assert timm_encoder("resnet10t").spec["mean"] is None
    assert asked == [True, True, False]


def test_timm_faults_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet10s'; did you mean .*resnet10t"):
        timm_encoder("resnet10s")
    with pytest.raises(ValueError, match=r"cannot create resnet10t: .*color"):
        timm_encoder("resnet10t", color="blue")
    with pytest.raises(ValueError, match=r"not allowed as timm options: num_classes; use model\.weights"):
        timm_encoder("resnet10t", num_classes=7)
    assert timm_encoder("resnet10t", global_pool="")(torch.rand(2, 3, 32, 32)).shape == (2, 512)  # maps are averaged
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'simclr-lightning\[timm\]'"):
        timm_encoder("resnet10t")
