"""NaN, infinity and signals: no bad update is applied, and all ranks stop together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from simclr_lightning.callbacks.checkpoints import save_last

OVERFLOWS_IN_A_ROW = 20  # under the fp16 scaler an overflow is skipped; so many in a row are an error


class NonFiniteError(ValueError):
    """NaN or infinity in the loss or the gradient; names the step and the images of the batch."""


class Stopped(Exception):
    """The run was asked to stop by a signal and has saved its state."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


class Health(L.Callback):
    """Masks non-finite updates on the device and stops every rank together, on them or on a signal.

    The update of a step with NaN or infinity in loss or gradient, on any rank, is masked through the optimiser's
    ``found_inf``; the host looks every ``every_n_steps`` steps (every step on the CPU, where looking is free) and
    before every save, which then holds finite numbers only. A signal is agreed on between the ranks at every step, on
    the host; at an epoch's end `OnlineScore` gives up for it.

    Args:
        stop: returns the number of the signal that asks this process to stop, or 0.
        every_n_steps: optimiser steps between two looks on an accelerator.
    """

    def __init__(self, *, stop: Callable[[], int] = lambda: 0, every_n_steps: int = 10) -> None:
        self.stop = stop
        self.every_n_steps = every_n_steps
        self.recent: deque[tuple[int, Tensor]] = deque(maxlen=every_n_steps)
        self.loss: Tensor | None = None
        self.first_bad = torch.full((), -1, dtype=torch.int64)
        self.row = torch.zeros((), dtype=torch.int64)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counters live on the device, so that counting does not wait for it."""
        self.first_bad = torch.full_like(self.first_bad, -1, device=pl_module.device)
        self.row = torch.zeros_like(self.row, device=pl_module.device)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Remember the loss: it may be NaN where the gradient is not."""
        self.loss = loss.detach()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Find NaN or infinity on any rank and tell the optimiser, all without reading a value."""
        assert self.loss is not None
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = torch.stack(torch._foreach_norm(grads)).sum() + self.loss
        found = (~torch.isfinite(total)).to(torch.float32)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        if _scaler(trainer) is None:
            optimizer.found_inf = found
        bad = found > 0
        self.row = torch.where(bad, self.row + 1, 0)
        first = torch.where(bad & (self.first_bad < 0), trainer.global_step, self.first_bad)
        # Under the scaler an overflow that is followed by a good step is over.
        self.first_bad = first if _scaler(trainer) is None else torch.where(bad, first, -1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the counters and the signals at the same steps on every rank, and act together."""
        self.recent.append((trainer.global_step - 1, batch["indices"]))
        if _looking_is_free(pl_module.device) or trainer.global_step % self.every_n_steps == 0:
            self._raise_if_bad(trainer)
        if not trainer.is_last_batch:
            self._stop_if_asked(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A signal of the last epoch's last step."""
        self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look before anything of the epoch is scored or saved."""
        self._raise_if_bad(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save NaN or infinity, whatever put it there: a save reads the device anyway.

        A masked step leaves the weights as they were, but its forward pass has moved BatchNorm's running statistics.

        Raises:
            NonFiniteError: so that the last finite checkpoint stays the newest.
        """
        self._raise_if_bad(trainer)
        name = _not_finite(checkpoint["state_dict"], trainer.optimizers)
        if name is not None:
            raise NonFiniteError(
                f"NaN or infinity in {name} at step {trainer.global_step}: it is not saved, and the last finite "
                "checkpoint is kept. Lower optimizer.lr, lengthen schedule.warmup_epochs, or train with "
                "trainer.precision=bf16-mixed or 32-true; then ckpt_path=last"
            )

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        signum = _largest(self.stop(), trainer)
        if signum:
            self._raise_if_bad(trainer)
            save_last(trainer)
            raise Stopped(signum)

    def _raise_if_bad(self, trainer: L.Trainer) -> None:
        scaled = _scaler(trainer) is not None
        if scaled and int(self.row) < OVERFLOWS_IN_A_ROW:
            return
        step = int(self.first_bad)
        if step < 0:
            return
        indices = next((i.tolist() for s, i in self.recent if s == step), [])
        shown = ", ".join(map(str, indices[:16])) + (", ..." if len(indices) > 16 else "")
        what = f"{OVERFLOWS_IN_A_ROW} overflows in a row since" if scaled else "NaN or infinity in loss or gradient at"
        raise NonFiniteError(
            f"{what} step {step} (images {shown}); the update was not applied and the last finite checkpoint is kept. "
            "Lower optimizer.lr, lengthen schedule.warmup_epochs, or look at these images; then ckpt_path=last"
        )


def _looking_is_free(device: torch.device) -> bool:
    return device.type == "cpu"


def _not_finite(weights: Mapping[str, Any], optimizers: Iterable[torch.optim.Optimizer]) -> str | None:
    """The name of a tensor that holds NaN or infinity, None where all are finite; the device is read once."""
    moments = [(f"the optimiser's {k}", v) for o in optimizers for s in o.state.values() for k, v in s.items()]
    floats = [(k, v) for k, v in (*weights.items(), *moments) if isinstance(v, Tensor) and v.is_floating_point()]
    if not floats:
        return None
    bad = torch.stack([~v.isfinite().all().to(floats[0][1].device) for _, v in floats])
    return next((name for (name, _), is_bad in zip(floats, bad.tolist(), strict=True) if is_bad), None)


def _scaler(trainer: L.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _largest(value: int, trainer: L.Trainer) -> int:
    """The largest value over all ranks, through the CPU's process group: no device is read."""
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(value)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared)
