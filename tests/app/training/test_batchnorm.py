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
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.validate import check_config
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.app.training import trainer
from simclr_lightning.app.training.batchnorm import SharedBatchNorm
from simclr_lightning.app.training.build import build
from simclr_lightning.app.training.devices import devices_of_a_batchnorm
from simclr_lightning.app.training.messages import opening_notes
from simclr_lightning.app.training.trainer import make_trainer
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
    ("asked", "shared"), [("auto", 8), (True, 8), (False, 1), (1, 1), (2, 2), (4, 4), (8, 8), (16, 8)], ids=str
)
def test_devices_that_share_statistics(asked: object, shared: int) -> None:
    assert devices_of_a_batchnorm(keys(asked)) == shared


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("asked", "better"), [(3, 2), (5, 4), (7, 4)])
def test_groups_that_do_not_come_out_even_are_refused(asked: int, better: int) -> None:
    with pytest.raises(UserError, match=rf"sync_batchnorm={asked}: 8 devices .* use {better}, for example"):
        devices_of_a_batchnorm(keys(asked))


@pytest.mark.parametrize("where", [{"accelerator": "cpu"}, {"devices": 1, "nodes": 1}])
@pytest.mark.parametrize("asked", ["auto", True, False, 1, 2])
@pytest.mark.usefixtures("four_gpus")
def test_one_device_or_a_cpu_shares_nothing(asked: object, where: dict[str, Any]) -> None:
    assert devices_of_a_batchnorm(keys(asked, **where)) == 1


def test_groups_are_checked_before_any_work() -> None:
    words = ["trainer.devices=3", "trainer.num_nodes=2", "data.batch_size=60", "trainer.sync_batchnorm="]
    check_config(compose([*words[:-1], words[-1] + "2"]))
    with pytest.raises(UserError, match="6 devices cannot be divided into groups of 4; use 3"):
        check_config(compose([*words[:-1], words[-1] + "4"]))


@pytest.mark.filterwarnings("ignore:GPU available but not used")
@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("asked", "devices"), [("auto", 4), (2, 2), (False, None)])
def test_the_trainer_is_given_it_and_the_opening_says_so(
    asked: object, devices: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["trainer.devices=4", "trainer.precision=32-true", "micro_batch_size=32"]
    cfg = locate_checked([*words, f"trainer.sync_batchnorm={asked}"]).cfg
    monkeypatch.setattr(trainer, "trainer_options", lambda *args: {"accelerator": "cpu", "strategy": DDPStrategy()})
    made, _ = make_trainer(tmp_path, cfg, total=1, steps_per_epoch=1, console=Console(quiet=True))
    given = made.strategy._layer_sync
    assert (given and given.devices) == devices
    lines = [line for line in opening_notes(cfg, build(cfg), 1) if "BatchNorm statistics" in line]
    said = {
        "auto": [],
        2: ["BatchNorm statistics are shared by groups of 2 devices: those of 16 images"],
        False: ["BatchNorm statistics are per device: those of 8 images"],
    }
    assert lines == said[asked]


def work(rank: int, folder: str) -> None:
    """What each of four processes finds in its network; the answers go to a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=4)
    found = {}
    for devices in (2, 4):
        encoder = resnet(10, 0.25).to(memory_format=torch.channels_last)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        plugin = SharedBatchNorm(devices)
        shared = plugin.apply(encoder)
        assert shared.state_dict().keys() == before.keys()
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


class Odd(nn.BatchNorm2d):
    """A layer that does more than BatchNorm."""


def alone(monkeypatch: pytest.MonkeyPatch) -> SharedBatchNorm:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    return SharedBatchNorm(2)


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnety_002", "resnet18"])
def test_layers_of_timm_keep_their_activations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=0).eval()
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = network(x)
        plugin = alone(monkeypatch)
        shared = plugin.apply(network)
        assert any(isinstance(m, nn.SyncBatchNorm) for m in shared.modules())
        assert torch.equal(shared(x), before)  # in evaluation mode it computes on a CPU too
        next(m for m in shared.modules() if isinstance(m, nn.SyncBatchNorm)).running_mean += 1.0
        learnt = shared(x)
        assert not torch.equal(learnt, before)
        back = plugin.revert(shared)
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in back.modules())
        assert torch.equal(back(x), learnt)


def test_a_layer_that_has_no_synchronized_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"Odd has no synchronized form; use trainer\.sync_batchnorm=false"):
        alone(monkeypatch).apply(nn.Sequential(Odd(3)))
