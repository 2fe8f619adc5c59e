"""Health, checkpoints and metrics: NaN, signals, means over steps."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch

from conftest import small_data, small_module, small_trainer
from simclr_lightning import callbacks, checkpoint
from simclr_lightning.callbacks import (
    AtomicCheckpointIO,
    Health,
    MeanOverRanks,
    NonFiniteError,
    OnlineScore,
    StepMetrics,
    health as health_module,
)
from simclr_lightning.ntxent import NTXent


class Poison(L.Callback):
    """Put a value into the gradient or the loss of one step."""

    def __init__(self, step: int, value: float, where: str) -> None:
        self.step, self.value, self.where = step, value, where
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, i: int) -> None:
        if trainer.global_step == self.step:
            self.before = {name: value.clone() for name, value in module.named_parameters()}
            if self.where == "loss":
                loss = module.loss
                module.loss = lambda a, b: loss(a, b)._replace(loss=loss(a, b).loss + self.value)
                self.undo = loss

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == self.step and self.where == "gradient":
            next(module.encoder.parameters()).grad.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_non_finite_update_is_skipped_and_the_run_stops(tmp_path: Path, value: float, where: str, step: int) -> None:
    poison, module = Poison(step, value, where), small_module()
    # nn.Module accepts no function as a submodule, so the loss becomes a plain attribute.
    del module._modules["loss"]
    module.__dict__["loss"] = NTXent(0.5)
    trainer = small_trainer(tmp_path, extra=[poison])
    data = small_data()
    with pytest.raises(NonFiniteError, match=f"at step {step} ") as error:
        trainer.fit(module, datamodule=data)
    after = dict(module.named_parameters())
    assert all(torch.equal(after[name], poison.before[name]) for name in after)
    assert trainer.global_step == step + 1
    first = small_data()
    first._offset = step * 16
    wanted = next(iter(first.train_dataloader()))["indices"].tolist()
    assert ", ".join(map(str, wanted)) in str(error.value)
    saved = checkpoint.newest(tmp_path)
    if step < 4:
        assert saved is None
    else:
        state = checkpoint.load(saved[0])["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


class Spoil(L.Callback):
    """At one step, put NaN into the images or infinity into the BatchNorm statistics (as an fp16 overflow does)."""

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, i: int) -> None:
        if trainer.global_step == self.step:
            if self.where == "images":
                batch["x_a"][0] = math.nan
            else:
                module.encoder.body[1].running_var[0] = math.inf


@pytest.mark.parametrize(
    ("where", "says"), [("images", "NaN or infinity in loss or gradient at step 2"), ("statistics", "running_var")]
)
def test_a_save_between_two_reads_of_an_accelerator_is_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, says: str
) -> None:
    monkeypatch.setattr(health_module, "_reading_is_free", lambda device: False)
    trainer = small_trainer(tmp_path, extra=[Spoil(2, where)])
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, callbacks.Checkpoints))
    checkpoints.every_n_steps = 1
    with pytest.raises(NonFiniteError, match=says):
        trainer.fit(small_module(), datamodule=small_data())
    found = checkpoint.newest(tmp_path)
    saved = checkpoint.load(found[0])
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_optimizers_skip_a_non_finite_update(tmp_path: Path, name: str) -> None:
    from functools import partial

    module = small_module()
    module.make_optimizer = partial(getattr(torch.optim, name), lr=0.1, fused=True)
    poison = Poison(2, math.nan, "gradient")
    with pytest.raises(NonFiniteError):
        small_trainer(tmp_path, extra=[poison]).fit(module, datamodule=small_data())
    assert all(torch.equal(value, poison.before[key]) for key, value in module.named_parameters())


def test_the_best_checkpoint_is_the_one_of_the_best_score(tmp_path: Path) -> None:
    class Scripted(OnlineScore):
        scores = (0.2, 0.9, 0.5)

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.score = self.scores[trainer.current_epoch]

    online = Scripted()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, plugins=[AtomicCheckpointIO()],
        callbacks=[online, callbacks.Checkpoints(tmp_path / "checkpoints", online=online)],
    )  # fmt: skip
    trainer.fit(small_module(), datamodule=small_data())
    steps = [checkpoint.load(tmp_path / "checkpoints" / name)["global_step"] for name in ("best.ckpt", "last.ckpt")]
    assert steps == [8, 12]


def test_checkpoints_are_saved_inside_an_epoch(tmp_path: Path) -> None:
    saved: list[int] = []

    class Spy(callbacks.Checkpoints):
        def on_save_checkpoint(self, trainer: L.Trainer, module: object, checkpoint: dict[str, object]) -> None:
            saved.append(trainer.global_step)

    spy = Spy(tmp_path / "checkpoints", every_n_steps=3, every_n_epochs=2)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, plugins=[AtomicCheckpointIO()],
        callbacks=[spy],
    )  # fmt: skip
    trainer.fit(small_module(), datamodule=small_data())
    assert saved == [3, 6, 8, 9, 12]  # steps of three, the second epoch's end, the end


def test_step_metrics_are_means(tmp_path: Path) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    losses: list[float] = []

    class Spy(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, m: object, outputs: object, batch: object, i: int) -> None:
            losses.append(float(outputs["train/loss"]))

    metrics = StepMetrics(every_n_steps=3)
    trainer = small_trainer(tmp_path, extra=[Spy(), metrics])

    class Rows(L.pytorch.loggers.logger.DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            rows.append((step, dict(metrics)))

    trainer.loggers = [Rows()]
    trainer.fit(small_module(), datamodule=small_data())
    by_step = {step: row["train/loss_step"] for step, row in rows if "train/loss_step" in row}
    assert by_step.keys() == {3, 6, 9, 12}
    for step, value in by_step.items():
        assert value == pytest.approx(sum(losses[step - 3 : step]) / 3)
    epochs = [row["train/loss"] for _, row in rows if "train/loss" in row]
    assert epochs == pytest.approx([sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)])


def test_means_survive_a_checkpoint() -> None:
    mean = MeanOverRanks(2)
    mean.add(torch.tensor([1.0, 2.0]))
    other = MeanOverRanks(2)
    other.restore(mean.state())
    other.add(torch.tensor([3.0, 6.0]))
    assert other.take() == [2.0, 4.0]
    assert other.take() == [0.0, 0.0]


def test_health_counts_overflows_in_a_row_under_a_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_scaler", lambda trainer: object())
    health = Health()
    health.row, health.first_bad = torch.tensor(19), torch.tensor(4)
    health._raise_if_bad(L.Trainer.__new__(L.Trainer))
    health.row += 1
    with pytest.raises(NonFiniteError, match="20 fp16 overflows in a row since step 4"):
        health._raise_if_bad(L.Trainer.__new__(L.Trainer))
