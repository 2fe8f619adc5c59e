"""An exponential moving average of the weights: what is judged, saved as the model and exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class AveragedWeights(WeightAveraging):
    """Keeps average = d * average + (1 - d) * weights after every step, BatchNorm's statistics included.

    d is ``decay``, in the first steps (1 + step) / (10 + step) where that is smaller, so that the initial weights are
    soon forgotten. Scores between epochs are the average's (`averaged`); a checkpoint's ``state_dict`` is the average,
    which makes it what is judged at the end and exported, and its ``current_model_state`` the weights from which
    training goes on. Comes before `Health` and `Checkpoints`. Nothing waits for the device.

    Args:
        decay: in (0, 1); 0.999 averages about the last thousand steps.

    Raises:
        ValueError: for another decay.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema={decay}: the decay must be above 0 and below 1, for example 0.999")
        super().__init__(use_buffers=True)
        self.decay = decay

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The average lies where the weights lie: the library makes it before they are moved."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average; the library's own update reads a counter from the device."""
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
        """The module keeps its own weights: a finished run may go on from its checkpoint."""

    @contextmanager
    def judged(self, module: L.LightningModule) -> Iterator[None]:
        """The module has the average's weights inside, and its own again afterwards."""
        self._swap_models(module)
        try:
            yield
        finally:
            self._swap_models(module)


def averaged(trainer: L.Trainer, module: L.LightningModule) -> AbstractContextManager[None]:
    """The weights that are judged: the average's inside, where the trainer keeps one."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring
    found = next((callback for callback in callbacks if isinstance(callback, AveragedWeights)), None)
    return nullcontext() if found is None else found.judged(module)


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [value.detach() for value in (*module.parameters(), *module.buffers())]
