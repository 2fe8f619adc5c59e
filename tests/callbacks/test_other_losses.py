"""Callbacks with a loss that has no temperature, and with a training step that returns the loss only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import small_data, small_module, small_trainer
from simclr_lightning.callbacks import Hardness, OnlineScore, StepMetrics
from simclr_lightning.selection import LABEL_FREE


class CosineDistance(nn.Module):
    """A loss of another kind: no temperature, no gather, no entropy."""

    def forward(self, z_a: torch.Tensor, z_b: torch.Tensor) -> SimpleNamespace:
        loss = 1 - nn.functional.cosine_similarity(z_a, z_b).mean()
        return SimpleNamespace(loss=loss, accuracy=loss.detach(), entropy=loss.detach())


def test_a_loss_without_a_temperature_has_every_other_score_and_no_hardness(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, online = small_module(), OnlineScore(k=3)
    module.loss = CosineDistance()
    hardness = Hardness(tmp_path / "similarity.csv", every_n_steps=1)
    small_trainer(tmp_path, extra=[online, hardness], max_steps=4).fit(module, datamodule=small_data())
    labelled = {"online/knn_top1", "online/linear_top1", "online/linear_loss"}
    assert online.latest.keys() == {f"online/{name}" for name in LABEL_FREE if name != "held_out_loss"} | labelled
    assert online.score == online.latest["online/knn_top1"]
    assert hardness.latest == {}
    assert not hardness.path.exists()
    assert capsys.readouterr().err.count("the loss CosineDistance is no module with a temperature") == 1
    trainer = small_trainer(tmp_path / "b", extra=[OnlineScore(select="held_out_loss")])
    with pytest.raises(ValueError, match="select=held_out_loss needs a loss with a temperature"):
        trainer.fit(module, datamodule=small_data())


def test_a_training_step_without_accuracy_logs_its_loss(tmp_path: Path) -> None:
    module, metrics = small_module(), StepMetrics(every_n_steps=2)
    step = module.training_step
    losses: list[float] = []

    def loss_only(batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        out = {name: value for name, value in step(batch, batch_idx).items() if name in ("loss", "train/loss")}
        losses.append(out["loss"].item())
        return out

    module.training_step = loss_only
    trainer = small_trainer(tmp_path, extra=[metrics], max_steps=4)
    trainer.fit(module, datamodule=small_data())
    assert metrics.latest.keys() == {"train/loss_step", "lr"}
    assert metrics.latest["train/loss_step"] == pytest.approx(sum(losses[2:]) / 2)
    assert "train/contrastive_accuracy" not in trainer.callback_metrics
