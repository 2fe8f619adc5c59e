"""Two processes make the optimizer steps of one."""

from __future__ import annotations

import math
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simclr_lightning.optim import LARS, Schedule, parameter_groups


def _train(model: nn.Module, x_NF: Tensor, *, parts: int) -> tuple[list[float], Tensor]:
    """Return the rates and the final weights of ten scheduled LARS steps on one part of the global batch."""
    optimizer = LARS(parameter_groups(model), lr=0.3, weight_decay=1e-3)
    scheduler = Schedule(warmup_epochs=1)(
        optimizer, global_batch_size=len(x_NF) * parts, steps_per_epoch=3, total_steps=10
    )
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        model.zero_grad()
        model(x_NF).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return rates, torch.cat([p.detach().flatten() for p in model.parameters()])


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x_NF = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = _train(DistributedDataParallel(_network()), x_NF[rank * 4 : rank * 4 + 4], parts=2)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload(["torch.distributed", "simclr_lightning.optim"])
    mp.start_processes(_rank, args=(os.fspath(tmp_path),), nprocs=2, start_method="forkserver")
    x_NF = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rates, weights = _train(_network(), x_NF, parts=1)
    peak = 0.3 * 8 / 256
    for step, rate in enumerate(rates):
        factor = step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 7)) / 2
        assert rate == pytest.approx(peak * factor, rel=1e-14)
    for rank in range(2):
        their_rates, their_weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert their_rates == rates
        assert (their_weights - weights).norm() / weights.norm() < 1e-12
    assert not torch.equal(weights, torch.cat([p.detach().flatten() for p in _network().parameters()]))
