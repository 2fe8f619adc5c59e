"""The callbacks with a LightningModule and a loader of other people, and NaN with every optimizer."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conftest import small_data, small_module
from simclr_lightning import checkpoint
from simclr_lightning.callbacks import (
    AtomicCheckpointIO,
    AveragedWeights,
    Checkpoints,
    Hardness,
    Health,
    NonFiniteError,
    OnlineScore,
    RunProgress,
    StepMetrics,
    health as health_module,
)


class Plain(L.LightningModule):
    """A regression that returns its loss only."""

    def __init__(self, make: Callable[..., Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4)
        self.make = make or partial(torch.optim.SGD, lr=0.1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.layer(batch[0]).sum(1) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        return self.make([self.layer.weight, self.layer.bias])


def batches(count: int = 6) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(4 * count, 3, generator=draw), torch.randn(4 * count, generator=draw)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    given = {"max_epochs": 2, "plugins": [AtomicCheckpointIO()], "log_every_n_steps": 1, **options}
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **given,
    )  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_callback_works_with_any_module_and_loader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], accumulate: int
) -> None:
    module, metrics = Plain(), StepMetrics(every_n_steps=3)
    fit = trainer(
        metrics,
        AveragedWeights(0.9),
        Health(),
        Hardness(every_n_steps=1),
        Checkpoints(tmp_path, every_n_steps=2),
        RunProgress(),
        accumulate_grad_batches=accumulate,
    )
    fit.fit(module, batches())
    steps = 12 // accumulate
    wanted, losses = Plain(), []
    optimizer = torch.optim.SGD(wanted.layer.parameters(), lr=0.1)
    for number, batch in enumerate([*batches(), *batches()], start=1):
        loss = wanted.training_step(batch, 0)
        losses.append(loss.item())
        (loss / accumulate).backward()
        if number % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(module.layer.weight, wanted.layer.weight)
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(sum(losses[6:]) / 6)
    assert metrics.latest["train/loss_step"] == pytest.approx(sum(losses[-3 * accumulate :]) / (3 * accumulate))
    assert checkpoint.load(tmp_path / "last.ckpt")["global_step"] == steps
    found = capsys.readouterr()
    assert f"step {steps}/{steps}" in found.out
    assert "hardness is not logged" in found.err


@pytest.mark.parametrize(
    ("callback", "plugins", "says"),
    [
        (OnlineScore(), [], "OnlineScore scores a SimCLR, not a Plain"),
        (Checkpoints(Path("unused")), [], r"pass Trainer\(plugins=\[AtomicCheckpointIO\(\)\]\)"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_in_one_sentence(callback: Any, plugins: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trainer(callback, plugins=plugins).fit(Plain(), batches())


def test_online_scores_need_the_images_of_a_data_module() -> None:
    pairs = DataLoader(TensorDataset(*torch.rand(2, 16, 3, 8, 8)), batch_size=16)
    with pytest.raises(ValueError, match="OnlineScore needs the images of a ViewsDataModule"):
        trainer(OnlineScore()).fit(small_module(), pairs)


def test_the_hardness_uses_the_labels_of_the_batch() -> None:
    x_a, x_b = torch.rand(2, 16, 3, 8, 8)
    found = []
    for y in (torch.zeros(16).long(), torch.arange(16)):
        hardness = Hardness(every_n_steps=1)
        samples = [((a, b), label) for a, b, label in zip(x_a, x_b, y, strict=True)]
        trainer(hardness, max_steps=1, max_epochs=-1).fit(small_module(), DataLoader(samples, batch_size=16))
        found.append(hardness.latest["train/same_class_all"])
    assert found == [pytest.approx(1.0), 0.0]


class Spoiled(L.Callback):
    """Put NaN into the gradient of one step, and store the weights and the optimizer's state before it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.global_step == self.step:
            self.before = copy.deepcopy((module.state_dict(), trainer.optimizers[0].state_dict()))
            module.layer.weight.grad[0, 0] = math.nan


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer of torch and timm that needs neither sparse gradients nor another optimizer."""
    import torch.optim as of_torch

    found = {f"torch.{name}": kind for name, kind in vars(of_torch).items()}
    try:
        import timm.optim as of_timm

        found |= {f"timm.{name}": kind for name, kind in vars(of_timm).items()}
    except ImportError:
        pass
    kinds = {name: kind for name, kind in found.items() if inspect.isclass(kind)}
    others = ("SparseAdam", "Optimizer", "Lookahead", "Adahessian", "Muon")
    return {
        name: kind
        for name, kind in kinds.items()
        if issubclass(kind, torch.optim.Optimizer) and name.partition(".")[2] not in others
    }


def plain(value: Any) -> Any:
    """Return tensors as lists, so that states can be compared."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, Tensor) else value


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(optimizers()))
def test_every_optimizer_skips_a_gradient_with_nan(name: str) -> None:
    kind = optimizers()[name]
    module, spoiled = Plain(partial(kind, lr=0.01)), Spoiled(3)
    fit = trainer(spoiled, Health())
    with pytest.raises(NonFiniteError, match="at step 3: the update was skipped"):
        fit.fit(module, batches())
    weights, state = spoiled.before
    assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    assert all(value.isfinite().all() for value in module.state_dict().values())
    after = fit.optimizers[0].state_dict()
    if kind is not torch.optim.LBFGS:  # it counts evaluations
        assert plain(after) == plain(state)
    assert "guard" not in repr(fit.optimizers[0].step)


def test_an_optimizer_with_a_guard_trains_as_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for callbacks in ([], [Health()]):
        module = Plain(partial(torch.optim.NAdam, lr=0.1))
        scheduler = module.make
        module.make = lambda params, make=scheduler: {
            "optimizer": (optimizer := make(params)),
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        }
        trainer(*callbacks).fit(module, batches())
        found.append(module.layer.weight)
    assert torch.equal(*found)


def test_a_read_of_the_device_at_every_step_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health_module, "_reading_is_free", lambda device: False)
    trainer(Health()).fit(Plain(partial(torch.optim.RMSprop, lr=0.1)), batches())
    assert capsys.readouterr().err.count("RMSprop does not skip NaN by itself") == 1
    module = small_module()
    for make in (module.make_optimizer, partial(torch.optim.AdamW, fused=True)):
        module.make_optimizer = make
        trainer(Health()).fit(module, datamodule=small_data())
    assert "does not skip NaN" not in capsys.readouterr().err
