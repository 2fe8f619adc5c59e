"""Compare learning-rate rules and schedules with their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simclr_lightning.optim import Schedule, scaled_lr, warmup_cosine


def test_scaled_lr_at_the_papers_batches() -> None:
    assert scaled_lr(0.3, 4096, "linear") == pytest.approx(4.8)
    assert scaled_lr(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert scaled_lr(0.3, 4096, "constant") == 0.3
    with pytest.raises(ValueError, match="linear, sqrt, constant"):
        scaled_lr(0.3, 256, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        scaled_lr(0.3, 0, "linear")


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 50), (1, 2), (10, 97), (50, 50)])
def test_warmup_cosine_at_every_step(warmup: int, total: int) -> None:
    for step in range(total + 5):
        found = warmup_cosine(step, warmup_steps=warmup, total_steps=total)
        if step >= total:
            assert found == 0
        elif step < warmup:
            assert found == step / warmup
        else:
            # the same cosine in its half-angle form, as an independent formula
            half = np.float64(step - warmup) / (total - warmup) * np.pi / 2
            assert found == pytest.approx(np.cos(half) ** 2, abs=1e-15)


@pytest.mark.parametrize(("step", "warmup", "total"), [(-1, 0, 5), (0, 6, 5), (0, -1, 5), (0, 0, 0)])
def test_warmup_cosine_refuses_what_has_no_meaning(step: int, warmup: int, total: int) -> None:
    with pytest.raises(ValueError, match="it must be"):
        warmup_cosine(step, warmup_steps=warmup, total_steps=total)


@pytest.mark.parametrize(
    ("rule", "peak"), [("linear", 0.2 * 96 / 256), ("sqrt", 0.2 * math.sqrt(96)), ("constant", 0.2)]
)
def test_schedule_sets_the_rate_of_every_step_and_group(rule: Any, peak: float) -> None:
    model = nn.BatchNorm1d(3)
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.1}], lr=0.2)
    scheduler = Schedule(rule, warmup_epochs=1.5)(optimizer, global_batch_size=96, steps_per_epoch=10, total_steps=60)
    for step in range(60):
        factor = step / 15 if step < 15 else (1 + math.cos(math.pi * (step - 15) / 45)) / 2
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([peak * factor, peak * factor / 2], rel=1e-14, abs=1e-17)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_warmup_longer_than_the_run_is_shortened() -> None:
    assert Schedule(warmup_epochs=10).warmup_steps(100, 5000) == 1000
    assert Schedule(warmup_epochs=10).warmup_steps(100, 1000) == 1000
    assert Schedule(warmup_epochs=10).warmup_steps(100, 999) == 99
    assert Schedule(warmup_epochs=10).warmup_steps(100, 5) == 0
    assert Schedule(warmup_epochs=0).warmup_steps(100, 5) == 0


def test_a_schedule_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.rule is 'square'"):
        Schedule("square")  # type: ignore[arg-type]
    for epochs in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"schedule\.warmup_epochs"):
            Schedule(warmup_epochs=epochs)
