"""The fast lane: what auto stands for, what the loss keeps, and that no step waits for the device."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import small_data, small_module, small_trainer
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.trainer import trainer_options
from simclr_lightning.callbacks import AveragedWeights, StepMetrics, health as health_room
from simclr_lightning.ntxent import nt_xent, operator


def keys(**values: Any) -> DictConfig:
    return OmegaConf.create({"compile": "auto", "tf32": "auto", "trainer": {"precision": "auto"}, **values})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU that is only asked what it can."""
    can: dict[str, Any] = {"bf16": True, "capability": (9, 0), "triton": object()}
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: can["bf16"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: can["capability"])
    monkeypatch.setattr(performance, "find_spec", lambda name: can[name])
    return can


def test_precision(gpu: dict[str, Any]) -> None:
    assert performance.precision(keys(), "cuda") == "bf16-mixed"
    gpu["bf16"] = False
    assert [performance.precision(keys(), kind) for kind in ("cuda", "cpu")] == ["32-true"] * 2
    assert performance.precision(keys(trainer={"precision": "16-mixed"}), "cuda") == "16-mixed"


@pytest.mark.parametrize("asked", ["16-mixed", "16", 16])
def test_float16_on_a_cpu_is_refused_because_lightning_would_take_bfloat16(asked: str | int) -> None:
    with pytest.raises(UserError, match="on the CPU use bf16-mixed or 32-true"):
        performance.precision(keys(trainer={"precision": asked}), "cpu")
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        L.Trainer(accelerator="cpu", precision="16-mixed", logger=False, enable_checkpointing=False)


def test_freed_pages_are_kept_on_a_cpu_or_where_asked() -> None:
    assert [performance.keeps_pages(keys(keep_pages="auto"), kind) for kind in ("cpu", "cuda", "mps")] == [1, 0, 0]
    assert performance.keeps_pages(keys(keep_pages=True), "cuda")
    assert not performance.keeps_pages(keys(keep_pages=False), "cpu")


def test_compilation(gpu: dict[str, Any]) -> None:
    assert performance.compiles(keys(), "cuda", 2000)
    assert not performance.compiles(keys(), "cuda", 1999)
    assert not performance.compiles(keys(), "cpu", 10**6)
    assert performance.compiles(keys(compile=True), "cpu", 1)
    assert not performance.compiles(keys(compile=False), "cuda", 10**6)
    gpu["capability"] = (6, 1)
    assert not performance.compiles(keys(), "cuda", 2000)
    gpu.update(capability=(9, 0), triton=None)
    assert not performance.compiles(keys(), "cuda", 2000)


@pytest.mark.parametrize(("asked", "inside"), [("auto", "high"), (True, "high"), (False, "highest")])
def test_tf32_is_allowed_while_training_alone(asked: object, inside: str, gpu: dict[str, Any]) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with performance.products(performance.uses_tf32(keys(tf32=asked), "cuda"), "cuda"):
        assert torch.get_float32_matmul_precision() == inside
        assert torch.backends.cudnn.allow_tf32 == (inside == "high")
    with performance.products(performance.uses_tf32(keys(tf32=asked), "cpu"), "cpu"):
        assert torch.get_float32_matmul_precision() == before[0]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_channels_last() -> None:
    asked = {"auto": [True, True, False], True: [True] * 3, False: [False] * 3}
    for value, expected in asked.items():
        cfg = keys(model={"channels_last": value})
        assert [performance.channels_last(cfg, kind) for kind in ("cuda", "cpu", "mps")] == expected


@pytest.mark.parametrize(("asked", "static"), [("auto", True), (True, True), (False, False)])
def test_static_graph_and_bucket_views_reach_ddp(asked: object, static: bool) -> None:
    cfg = compose(["trainer.devices=2", "trainer.accelerator=cpu", f"static_graph={asked}"])
    options = trainer_options(cfg, 2, 10)
    ddp = options["strategy"]._ddp_kwargs
    assert ddp == {"gradient_as_bucket_view": True, "static_graph": static, "find_unused_parameters": not static}


def test_the_loss_keeps_all_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = operator.Blocks

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return real(*args, **options)

    monkeypatch.setattr(operator, "Blocks", spy)
    try:
        torch.set_float32_matmul_precision("medium")
        nt_xent(torch.rand(4, 3), torch.rand(4, 3), 0.5)
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_is_said_about_it(gpu: dict[str, Any]) -> None:
    assert performance.note(keys(), "cpu", 10) == ""
    assert performance.note(keys(), "cuda", 10) == "precision bf16-mixed, TF32"
    assert "compiled" in performance.note(keys(), "cuda", 2000)


HOST = ("/data/", "/views/", "/ntxent/", "random.py")  # their lists are of the host's own tensors: order, plan, sizes


class Reads(TorchDispatchMode):
    """Counts values that the host reads from tensors: as numbers, and as lists outside of what is the host's own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))

    def listed(self, tensor: torch.Tensor) -> Any:
        asks = sys._getframe(2).f_code.co_filename
        self.count += not any(part in asks for part in HOST)
        return TOLIST(tensor)


TOLIST = torch.Tensor.tolist


class Counted(L.Callback):
    """Counts from one batch's start to the next one's, the data's part included."""

    def __init__(self) -> None:
        self.reads: Counter[int] = Counter()
        self.mode = Reads()
        self.before = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.mode.__enter__()

    def on_train_batch_start(self, trainer: L.Trainer, module: object, batch: object, i: int) -> None:
        self.reads[trainer.global_step] = self.mode.count - self.before
        self.before = self.mode.count

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["plain", "cached", "averaged", "adamw", "looks", "logs"])
def test_no_step_reads_a_value_from_the_device(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy of a GPU without one: between two logs nothing becomes a number. The last two show what is counted."""
    monkeypatch.setattr(health_room, "_reading_is_free", lambda device: how == "looks")
    counted, module = Counted(), small_module()
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: counted.mode.listed(tensor))
    metrics = StepMetrics(every_n_steps=1 if how == "logs" else 10)
    extra: list[L.Callback] = [counted, *([AveragedWeights(0.9)] if how == "averaged" else []), metrics]
    if how == "cached":
        module.micro_batch_size = 8
    if how == "adamw":
        module.make_optimizer = partial(torch.optim.AdamW, fused=True)
    small_trainer(tmp_path, extra=extra).fit(module, datamodule=small_data(lazy=how == "cached"))
    between = [counted.reads[step] for step in (2, 3, 6, 7)]  # no epoch's end, no tenth step
    assert (between == [0] * 4) == (how not in ("looks", "logs")), counted.reads
