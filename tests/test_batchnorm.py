"""Synchronised BatchNorm: who shares statistics, what is refused, and the groups on four processes.

Torch's layer computes on GPUs only, so its arithmetic is torch's own matter here.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import DictConfig, OmegaConf
from torch import nn

from simclr_lightning.cli.batchnorm import SharedBatchNorm
from simclr_lightning.cli.devices import devices_of_a_batchnorm
from simclr_lightning.cli.errors import UserError
from simclr_lightning.encoders import resnet


def keys(shared: object, devices: int = 4, nodes: int = 2, accelerator: str = "auto") -> DictConfig:
    trainer = {"sync_batchnorm": shared, "devices": devices, "num_nodes": nodes, "accelerator": accelerator}
    return OmegaConf.create({"trainer": trainer})


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("asked", "shared"), [("auto", 8), (True, 8), (False, 1), (1, 1), (2, 2), (4, 4), (8, 8)], ids=str
)
def test_devices_that_share_statistics(asked: object, shared: int) -> None:
    assert devices_of_a_batchnorm(keys(asked)) == shared


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("asked", "better"), [(3, 2), (5, 4), (16, 8)])
def test_groups_that_do_not_come_out_even_are_refused(asked: int, better: int) -> None:
    with pytest.raises(UserError, match=rf"sync_batchnorm={asked}: 8 devices .* use {better}, for example"):
        devices_of_a_batchnorm(keys(asked))


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("where", [{"accelerator": "cpu"}, {"devices": 1, "nodes": 1}])
def test_one_device_or_a_cpu_shares_nothing(where: dict[str, Any]) -> None:
    assert [devices_of_a_batchnorm(keys(asked, **where)) for asked in ("auto", False, 1)] == [1, 1, 1]
    for asked in (True, 2):
        with pytest.raises(UserError, match=r"for several NVIDIA GPUs only; use trainer\.sync_batchnorm=auto"):
            devices_of_a_batchnorm(keys(asked, **where))


def work(rank: int, folder: str) -> None:
    """What each of four processes finds in its network; the answers go to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    found = {}
    for devices in (2, 4):
        encoder = resnet(10, 0.25).to(memory_format=torch.channels_last)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        plugin = SharedBatchNorm(devices)
        shared = plugin.apply(encoder)
        norms = [m for m in shared.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
        groups = {tuple(dist.get_process_group_ranks(m.process_group or dist.group.WORLD)) for m in norms}
        back = plugin.revert(shared)
        kept = all(torch.equal(value, before[name]) for name, value in back.state_dict().items())
        left = any(isinstance(m, nn.SyncBatchNorm) for m in back.modules())
        found[devices] = groups, kept and not left and back.state_dict().keys() == before.keys()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_groups_are_neighbours_and_weights_stay(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload(["torch.distributed", "simclr_lightning.encoders"])
    mp.start_processes(work, args=(str(tmp_path),), nprocs=4, start_method="forkserver")
    for rank in range(4):
        found = torch.load(tmp_path / f"{rank}.pt")
        pair = (0, 1) if rank < 2 else (2, 3)
        assert found == {2: ({pair}, True), 4: ({(0, 1, 2, 3)}, True)}
