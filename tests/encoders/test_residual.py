"""Compare ResNets with torchvision and with the paper's tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from made_encoders import MEAN, STD, torchvision_resnet
from torch import Tensor, nn

from simclr_lightning.encoders import Encoder, resnet


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_state_dict_is_torchvisions_without_fc(depth: int) -> None:
    with torch.device("meta"):
        ours, theirs = (
            resnet(depth).state_dict(),
            getattr(torchvision.models, f"resnet{depth}")().state_dict(),
        )
    wanted = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == wanted
    assert list(ours) == list(wanted)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_loads_our_weights_and_returns_the_same_features(depth: int, images: Tensor) -> None:
    encoder = resnet(depth)
    encoder.load_state_dict({k: v for k, v in torchvision_resnet(depth).state_dict().items() if k[:3] != "fc."})
    encoder.eval()
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(encoder.state_dict(), strict=True)
    with torch.inference_mode():
        h_NF = encoder(images)
        assert torch.equal(h_NF, theirs.eval()(images))
    assert h_NF.shape == (2, encoder.feature_dim)
    assert h_NF.std() > 0.01


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_bottlenecks_stride_on_the_3x3_convolution(depth: int) -> None:
    with torch.device("meta"):
        encoder = resnet(depth)
    for stage in (encoder.layer2, encoder.layer3, encoder.layer4):
        first: Any = stage[0]
        assert [first.conv1.stride, first.conv2.stride, first.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
        assert first.conv2.kernel_size == (3, 3)


# the paper's figure 1 and table 6, and the second paper's table 1, in millions without the classifier
@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(50, 1, 24), (50, 2, 94), (50, 4, 375), (101, 1, 43), (101, 2, 170), (152, 1, 58), (152, 2, 233)],
)
def test_parameter_counts_are_the_papers(depth: int, width: int, millions: int) -> None:
    with torch.device("meta"):
        encoder = resnet(depth, width)
    assert abs(_count(encoder) / 1e6 - millions) <= 0.75
    assert encoder.feature_dim == 2048 * width


@pytest.mark.parametrize("depth", [18, 50])
def test_width_multiplies_the_channels_of_every_layer(depth: int) -> None:
    def channels(width: float) -> list[int]:
        with torch.device("meta"):
            return [m.out_channels for m in resnet(depth, width).modules() if isinstance(m, nn.Conv2d)]

    for width in (0.25, 0.5, 2, 4):
        assert channels(width) == [width * c for c in channels(1)]


@pytest.mark.parametrize(("depth", "width", "dim"), [(10, 1, 512), (18, 0.25, 128), (34, 2, 1024), (50, 0.5, 1024)])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_feature_dim_is_the_width_of_h(depth: int, width: float, dim: int, stem: Any) -> None:
    encoder = resnet(depth, width, stem)
    assert encoder.feature_dim == dim
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, dim)


def _sides(encoder: nn.Module, side: int) -> list[int]:
    """Return the side of the output of each part of the network, for one image of this side."""
    sides: list[int] = []
    parts = [getattr(encoder, name) for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")]
    hooks = [part.register_forward_hook(lambda m, i, out: sides.append(out.shape[-1])) for part in parts]
    with torch.inference_mode():
        encoder.eval()(torch.rand(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return sides


def test_the_cifar_stem_keeps_small_images_whole() -> None:
    encoder = resnet(18, 0.25, "cifar")
    assert (encoder.conv1.kernel_size, encoder.conv1.stride, encoder.conv1.padding) == (
        (3, 3),
        (1, 1),
        (1, 1),
    )
    assert encoder.conv1.bias is None
    assert not any(isinstance(m, nn.MaxPool2d) for m in encoder.modules())
    assert _sides(encoder, 32) == [32, 32, 32, 16, 8, 4]
    # The ImageNet stem would reduce 32 pixels to one position.
    assert _sides(resnet(18, 0.25, "imagenet"), 32) == [16, 8, 8, 4, 2, 1]
    assert _sides(resnet(18, 0.25, "imagenet"), 224) == [112, 56, 56, 28, 14, 7]


@pytest.mark.parametrize(("depth", "blocks"), [(10, 4), (18, 8), (50, 16)])
def test_every_block_starts_as_its_shortcut(depth: int, blocks: int) -> None:
    def last_gammas(encoder: Encoder) -> list[Tensor]:
        name = "bn3.weight" if depth >= 50 else "bn2.weight"
        return [p for key, p in encoder.named_parameters() if key.startswith("layer") and key.endswith(name)]

    zeroed = last_gammas(resnet(depth, 0.25))
    assert len(zeroed) == blocks
    assert all((gamma == 0).all() for gamma in zeroed)
    assert all((gamma == 1).all() for gamma in last_gammas(resnet(depth, 0.25, zero_init_last=False)))
    others = [p for key, p in resnet(depth, 0.25).named_parameters() if "bn1.weight" in key]
    assert all((gamma == 1).all() for gamma in others)


def test_batchnorm_has_the_recipes_momentum_and_eps() -> None:
    norms = [m for m in resnet(50, 0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-5)}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(resnet(18, 0.25))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in converted.modules())


def test_weights_start_from_he_and_follow_the_seed() -> None:
    torch.manual_seed(1)
    one = resnet(18, 0.5).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(value, one[key]) for key, value in resnet(18, 0.5).state_dict().items())
    conv = one["layer4.1.conv1.weight"]
    assert float(conv.std()) == pytest.approx((2 / (conv.shape[0] * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"depth": 20}, r"model\.encoder\.depth is 20; choose one of 10, 18"),
        ({"stem": "mnist"}, r"model\.encoder\.stem is 'mnist'; choose imagenet or cifar"),
        ({"width": 0}, r"model\.encoder\.width"),
        ({"width": 0.3}, r"model\.encoder\.width"),
        ({"width": float("nan")}, r"model\.encoder\.width"),
        ({"width": 1e9}, r"model\.encoder\.width"),
        ({"mean": MEAN}, "set both or neither"),
        ({"mean": MEAN, "std": (0.1, 0.0, 0.1)}, "std above 0"),
        ({"mean": (0.5, 0.5), "std": (0.1, 0.1)}, "three finite"),
        ({"mean": "abc", "std": STD}, "each be three numbers"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resnet(**arguments)
