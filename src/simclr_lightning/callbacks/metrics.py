"""Loss and contrastive metrics as rows, exact over ranks and resumes."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from simclr_lightning.callbacks.rows import log_row


class StepMetrics(L.Callback):
    """Logs loss, contrastive accuracy and entropy as means over ranks: of every few steps, and of every epoch.

    Sums stay on the device; they are reduced and read only when they are logged or saved. They are part of the
    checkpoint, so a resumed run logs the means of an uninterrupted one. Comes before `Health` and `Checkpoints`.

    Args:
        every_n_steps: optimiser steps whose mean makes one row, ``train/loss_step`` and so on, with ``lr``.
    """

    NAMES = ("train/loss", "train/contrastive_accuracy", "train/contrastive_entropy")

    def __init__(self, *, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self.recent = MeanOverRanks(len(self.NAMES))
        self.epoch = MeanOverRanks(len(self.NAMES))
        self.latest: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far; called on every rank."""
        return {"recent": self.recent.state(), "epoch": self.epoch.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on summing."""
        self.recent.restore(state_dict["recent"])
        self.epoch.restore(state_dict["epoch"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add this step, and log when it is time."""
        values = torch.stack([outputs[name].detach().float() for name in self.NAMES])
        self.recent.add(values)
        self.epoch.add(values)
        if trainer.global_step % self.every_n_steps == 0:
            means = self.recent.take()
            self.latest = {f"{name}_step": value for name, value in zip(self.NAMES, means, strict=True)}
            self.latest["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
            log_row(trainer, self.latest)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch's means."""
        log_row(trainer, dict(zip(self.NAMES, self.epoch.take(), strict=True)))


class MeanOverRanks:
    """Running sums of a few numbers on the device, averaged over steps and ranks when they are read."""

    def __init__(self, count: int) -> None:
        self.sums = torch.zeros(count)
        self.steps = 0

    def add(self, values: Tensor) -> None:
        """Add one step's values, (count,) float32."""
        self.sums = self.sums.to(values.device) + values
        self.steps += 1

    def take(self) -> list[float]:
        """The means since the last time, on every rank alike; called on every rank."""
        means = (self._over_ranks() / max(self.steps, 1)).tolist()
        self.sums, self.steps = torch.zeros_like(self.sums), 0
        return [float(mean) for mean in means]

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; called on every rank."""
        return {"sums": self._over_ranks().tolist(), "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.sums, self.steps = torch.tensor(state["sums"]), state["steps"]

    def _over_ranks(self) -> Tensor:
        if not torch.distributed.is_initialized():
            return self.sums
        sums = self.sums.clone()
        torch.distributed.all_reduce(sums, op=torch.distributed.ReduceOp.SUM)
        return sums / torch.distributed.get_world_size()
