"""Parameter groups: BatchNorm and biases have neither weight decay nor trust ratio."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from simclr_lightning.optim import LARS, parameter_groups


class Everything(nn.Module):
    """Hold every kind of parameter that ``parameter_groups`` must distinguish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.sync = nn.SyncBatchNorm(4)
        self.layer_norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.linear = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.linear.weight
        self.again = self.bn
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.token = nn.Parameter(torch.zeros(4))


def test_parameter_groups_separate_batchnorm_and_biases() -> None:
    model = Everything()
    first, second = parameter_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in first["params"]] == [
        "token", "conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "linear.weight",
    ]  # fmt: skip
    assert sorted(names[id(p)] for p in second["params"]) == sorted([
        "conv.bias", "bn.weight", "bn.bias", "sync.weight", "sync.bias", "layer_norm.weight",
        "layer_norm.bias", "attention.in_proj_bias", "attention.out_proj.bias", "tied.bias",
    ])  # fmt: skip
    assert "weight_decay" not in first
    assert "adapt" not in first
    assert second["weight_decay"] == 0
    assert second["adapt"] is False


@pytest.mark.parametrize("factory", [LARS, torch.optim.SGD, torch.optim.AdamW])
def test_the_first_group_inherits_and_the_second_does_not(factory: Any) -> None:
    optimizer = factory(parameter_groups(Everything()), lr=0.1, weight_decay=0.25)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    if factory is LARS:
        assert [group["adapt"] for group in optimizer.param_groups] == [True, False]


def test_a_network_without_norms_and_biases_has_an_empty_second_group() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = LARS(parameter_groups(model), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="unfreeze"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))
