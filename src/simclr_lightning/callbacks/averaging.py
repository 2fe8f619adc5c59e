"""Average the weights over the steps (exponential moving average), to evaluate, save and export the average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class AveragedWeights(WeightAveraging):
    """Set average = d * average + (1 - d) * weights after every optimizer step, BatchNorm statistics included.

    d = min(decay, (1 + step) / (10 + step)), so that the initial weights lose their influence in the first steps.
    `OnlineScore` evaluates the average (see `averaged`). In a checkpoint, ``state_dict`` is the average, which is
    evaluated at the end and exported, and ``current_model_state`` the weights with which a resumed run continues. Must
    come before `Health` and `Checkpoints` in the list. No step waits for the device.

    Args:
        decay: in (0, 1); 0.999 averages about the last thousand steps.

    Raises:
        ValueError: the decay is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema={decay}: the decay must be above 0 and below 1, for example 0.999")
        super().__init__(use_buffers=True)
        self.decay = decay

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the average to the device of the weights; Lightning creates it before it moves them."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average; the update of Lightning would wait for the device to read a counter."""
        step = trainer.global_step
        if step <= self._latest_update_step:
            return
        self._latest_update_step = step
        assert self._average_model is not None
        average, now = _tensors(self._average_model.module), _tensors(pl_module)
        floats = [i for i, value in enumerate(now) if value.is_floating_point()]
        rest = [i for i, value in enumerate(now) if not value.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_(
                [average[i] for i in floats], [now[i] for i in floats], 1 - min(self.decay, (1 + step) / (10 + step))
            )
            for i in rest:
                average[i].copy_(now[i])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: Lightning would copy the average into the module, but a finished run can be continued."""

    @contextmanager
    def applied(self, module: L.LightningModule) -> Iterator[None]:
        """Give the module the averaged weights; restore its own on exit."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)


def averaged(trainer: L.Trainer, module: L.LightningModule) -> AbstractContextManager[None]:
    """Return a context in which the module has its averaged weights, if the trainer has an `AveragedWeights`.

    Args:
        trainer: whose callbacks are searched.
        module: has its own weights again after the context.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring
    found = next((callback for callback in callbacks if isinstance(callback, AveragedWeights)), None)
    return nullcontext() if found is None else found.applied(module)


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [value.detach() for value in (*module.parameters(), *module.buffers())]
