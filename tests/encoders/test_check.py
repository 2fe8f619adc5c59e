"""A module that cannot be trained as an encoder is refused in one sentence; the check changes nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simclr_lightning.encoders import check_encoder, feature_dim, pooled

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A convolution, BatchNorm and dropout; ``change`` is applied to its feature map (B, 5, 6, 6)."""

    def __init__(self, change: Callable[[Tensor], Any] = pooled) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))
        self.change = change

    def forward(self, x: Tensor) -> Any:
        random.random()
        return self.change(self.layers(x))


def test_a_feature_map_is_averaged_over_its_positions() -> None:
    maps = torch.rand(2, 5, 3, 4, dtype=torch.float64)
    by_hand = [[sum(float(v) for row in channel for v in row) / 12 for channel in image] for image in maps]
    torch.testing.assert_close(pooled(maps), torch.tensor(by_hand, dtype=torch.float64))
    assert pooled(maps[:, :, 0, 0]).shape == (2, 5)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 3\).*class token"):
        pooled(maps[..., 0])


@pytest.mark.parametrize("change", [pooled, lambda h: h], ids=["vectors", "maps"])
def test_the_width_is_found_and_nothing_changes(change: Callable[[Tensor], Any]) -> None:
    net = Net(change).train()
    net.layers[1].eval()  # a frozen BatchNorm stays frozen
    net.layers[0].weight.grad = torch.ones_like(net.layers[0].weight)
    before = copy.deepcopy(net.state_dict())
    modes, states = [m.training for m in net.modules()], (torch.get_rng_state(), random.getstate())
    assert check_encoder(net, IMAGES) == feature_dim(net, size=8) == 5
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.equal(net.layers[0].weight.grad, torch.ones_like(net.layers[0].weight))
    assert net.layers[0].bias.grad is None


def test_statistics_stay_after_a_pass_that_fails() -> None:
    net = Net(lambda h: 1 / 0)
    with pytest.raises(ValueError, match=r"fails for images of shape \(4, 3, 8, 8\): ZeroDivisionError"):
        check_encoder(net, IMAGES)
    assert net.layers[1].num_batches_tracked == 0
    assert net.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: (pooled(h), h), "a tuple of 2; return one Tensor"),
        (lambda h: {"features": h}, "type dict with the keys features; return one Tensor"),
        (lambda h: h.flatten(2), r"shape \(4, 5, 36\).*the class token or the mean over tokens"),
        (lambda h: h.mean(), r"shape \(\) and must return \(B, F\)"),
        (lambda h: pooled(h)[:2], r"shape \(2, 5\).*B was 4"),
        (lambda h: pooled(h).log(), "NaN or infinity"),
        (lambda h: pooled(h)[:, : len(h)], "4 features for a batch and 1 for one image"),
        (lambda h: pooled(h).detach(), r"no gradient reaches .* remove detach\(\)"),
        (lambda h: pooled(h).long(), "int64; return floats"),
    ],
)
def test_an_output_that_is_no_features_is_described(change: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_encoder(Net(change), IMAGES)


def test_parameters_that_cannot_be_trained_are_named() -> None:
    with pytest.raises(ValueError, match=r"no parameters to train"):
        check_encoder(nn.Flatten(), IMAGES)
    with pytest.raises(ValueError, match=r"no parameters to train"):
        check_encoder(Net().requires_grad_(False), IMAGES)
    with pytest.raises(ValueError, match=r"float16 parameters and the images are float32; call encoder\.float\(\)"):
        check_encoder(Net().half(), IMAGES)
    assert check_encoder(Net().double(), IMAGES.double()) == 5
    partly = Net()
    partly.layers[0].requires_grad_(False)
    assert check_encoder(partly, IMAGES) == 5


def test_a_wrong_width_or_number_of_channels_is_refused() -> None:
    net = Net()
    net.feature_dim = 7  # type: ignore[assignment]
    with pytest.raises(ValueError, match="5 features, but its feature_dim is 7"):
        check_encoder(net, IMAGES)
    with pytest.raises(ValueError, match=r"shape \(4, 1, 8, 8\): RuntimeError.* 3 channels"):
        check_encoder(Net(), IMAGES[:, :1])


def test_one_image_lazy_layers_and_synchronized_batchnorm_are_enough() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d())
    assert feature_dim(lazy, channels=1) == 5
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(Net())
    assert check_encoder(synchronized, IMAGES[:1]) == 5  # on the CPU, where it cannot communicate
    assert synchronized.layers[1].training
    assert check_encoder(torch.compile(Net()), IMAGES) == 5
