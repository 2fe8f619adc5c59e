"""Log loss, contrastive accuracy and contrastive entropy, as exact means over ranks and across a resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from simclr_lightning.callbacks.rows import log_row
from simclr_lightning.simclr import SimCLR


class StepMetrics(L.Callback):
    """Log the means over ranks of `NAMES`, those that ``training_step`` returns, of every few steps and every epoch.

    For a module whose ``training_step`` returns only its loss, the mean loss is logged. `SimCLR` then does not log the
    values of single steps, so that each name has one meaning. The sums stay on the device until they are logged or
    saved. A checkpoint contains them, so a resumed run logs the same means as an uninterrupted one. Must come before
    `Health` and `Checkpoints` in the list.

    Args:
        every_n_steps: optimizer steps in one row of means, named ``train/loss_step`` and so on, with ``lr``.
    """

    NAMES = ("train/loss", "train/contrastive_accuracy", "train/contrastive_entropy")

    def __init__(self, *, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self.recent = MeanOverRanks(len(self.NAMES))
        self.epoch = MeanOverRanks(len(self.NAMES))
        self.latest: dict[str, float] = {}
        self._missing: set[str] = set()
        self._logged = 0  # the step of the last row

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far; every rank must call it."""
        return {"recent": self.recent.state(), "epoch": self.epoch.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums."""
        self.recent.restore(state_dict["recent"])
        self.epoch.restore(state_dict["epoch"])

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop `SimCLR` from logging the same names."""
        _set_logging(pl_module, False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let `SimCLR` log again."""
        _set_logging(pl_module, True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the values of this step; log the means every ``every_n_steps`` optimizer steps."""
        if not isinstance(outputs, Mapping) or "loss" not in outputs:  # this step was skipped
            return
        whole = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning divided it
        outputs = {"train/loss": whole, **outputs}
        self._missing = set(self.NAMES) - outputs.keys()  # a loss may return no accuracy or entropy
        found = [outputs[name] if name in outputs else outputs["loss"] * math.nan for name in self.NAMES]
        values = torch.stack([value.detach().float() for value in found])
        self.recent.add(values)
        self.epoch.add(values)
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._logged:  # several batches may make one step
            self._logged = step
            self.latest = {f"{name}_step": value for name, value in self._means(self.recent).items()}
            if trainer.optimizers:
                self.latest["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
            log_row(trainer, self.latest)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means of the epoch."""
        if not self.epoch.steps:
            return
        log_row(trainer, self._means(self.epoch))

    def _means(self, sums: MeanOverRanks) -> dict[str, float]:
        return {name: x for name, x in zip(self.NAMES, sums.take(), strict=True) if name not in self._missing}


def _set_logging(module: L.LightningModule, on: bool) -> None:
    if isinstance(module, SimCLR):
        module.logs_steps = on


class MeanOverRanks:
    """Sum a few numbers on the device; average them over steps and ranks when they are read.

    Args:
        count: how many numbers.
    """

    def __init__(self, count: int) -> None:
        self.sums = torch.zeros(count)
        self.steps = 0

    def add(self, values: Tensor) -> None:
        """Add the values of one step, (count,) float32."""
        self.sums = self.sums.to(values.device) + values
        self.steps += 1

    def take(self) -> list[float]:
        """Return the means since the last call, equal on all ranks; every rank must call it."""
        means = (self._over_ranks() / max(self.steps, 1)).tolist()
        self.sums, self.steps = torch.zeros_like(self.sums), 0
        return [float(mean) for mean in means]

    def state(self) -> dict[str, Any]:
        """Return the sums as plain values for a checkpoint; every rank must call it."""
        return {"sums": self._over_ranks().tolist(), "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the values that `state` returned."""
        self.sums, self.steps = torch.tensor(state["sums"]), state["steps"]

    def _over_ranks(self) -> Tensor:
        if not torch.distributed.is_initialized():
            return self.sums
        sums = self.sums.clone()
        torch.distributed.all_reduce(sums, op=torch.distributed.ReduceOp.SUM)
        return sums / torch.distributed.get_world_size()
