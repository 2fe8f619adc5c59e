"""Optimizers of timm and torch: each takes the parameter groups, and its state survives a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from simclr_lightning.optim import parameter_groups, timm_optimizer

pytest.importorskip("timm")
SOME = ("adan", "adopt", "lamb", "lion", "madgrad", "muon", "sgdp")


def trained(make: Callable[[Any], torch.optim.Optimizer], steps: int, state: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 8))
    optimizer = make(parameter_groups(module))
    if state is not None:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    return {"module": module.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("name", SOME)
def test_a_resumed_optimizer_of_timm_makes_the_same_steps(name: str) -> None:
    def make(groups: Any) -> torch.optim.Optimizer:
        return timm_optimizer(groups, opt=name, lr=0.01, weight_decay=0.1)

    file = io.BytesIO()
    torch.save(trained(make, 2), file)
    file.seek(0)
    resumed = trained(make, 1, torch.load(file, weights_only=True))
    whole = trained(make, 3)
    assert [group["weight_decay"] for group in whole["optimizer"]["param_groups"]][1] == 0.0
    for key, value in whole["module"].items():
        torch.testing.assert_close(resumed["module"][key], value)


def test_a_wrong_optimizer_of_timm_is_refused_with_the_reason() -> None:
    params = [torch.zeros(1, requires_grad=True)]
    for name, reason in (("lambb", "did you mean lamb"), ("adahessian", "second derivatives")):
        with pytest.raises(ValueError, match=reason):
            timm_optimizer(params, opt=name, lr=0.1)
    with pytest.raises(ValueError, match="betax"):
        timm_optimizer(params, opt="lion", lr=0.1, betax=3)
