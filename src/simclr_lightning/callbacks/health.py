"""Skip updates with NaN or infinity, and stop all ranks together on them or on a signal."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from simclr_lightning.batches import indices_of
from simclr_lightning.callbacks.checkpoints import save_last
from simclr_lightning.callbacks.rows import warn
from simclr_lightning.stopping import Stopped

_FOUND = "NaN or infinity in loss or gradient at"
OVERFLOWS_IN_A_ROW = 20  # the fp16 scaler skips a step that overflows; this many in a row are an error


class NonFiniteError(ValueError):
    """NaN or infinity in loss, gradient or weights; the message names the step, and the images or the tensor."""


class Health(L.Callback):
    """Skip updates with NaN or infinity, and stop all ranks together on them or on a signal.

    If loss or gradient of any rank is not finite, the update is skipped. LARS, and torch's optimizers with
    ``fused=True``, skip it by their ``found_inf``, without waiting for the device. For every other optimizer the CPU
    reads the flag from the device before each update; one warning says so. Otherwise, it reads the result every
    ``every_n_steps`` steps and before every save. It then ends the run, so a checkpoint holds finite numbers only. (The
    fp16 scaler also skips such updates; there only `OVERFLOWS_IN_A_ROW` skipped steps end the run.) After every step
    the ranks exchange their signals over the CPU: if one rank has a signal, all ranks save last.ckpt and stop.

    It works with every LightningModule; messages name the images of a step if the batches have "indices".

    Args:
        stop: returns the number of a signal that this process has received, or 0.
        every_n_steps: optimizer steps between two reads from an accelerator; a CPU run reads after every step.

    Raises:
        NonFiniteError: from the hooks, on every rank.
        Stopped: from the hooks, on every rank.
    """

    def __init__(self, *, stop: Callable[[], int] = lambda: 0, every_n_steps: int = 10) -> None:
        self.stop = stop
        self.every_n_steps = every_n_steps
        self.recent: deque[tuple[int, list[Tensor]]] = deque(maxlen=every_n_steps)
        self.batches: list[Tensor] = []  # the indices of the batches since the last optimizer step
        self.steps = 0
        self.loss: Tensor | None = None
        self.found = torch.zeros(())
        self.guarded: list[tuple[Any, Any]] = []
        self.first_bad = torch.full((), -1, dtype=torch.int64)
        self.row = torch.zeros((), dtype=torch.int64)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the counters to the device, so that counting does not wait for it, and guard the optimizers."""
        self.first_bad = torch.full_like(self.first_bad, -1, device=pl_module.device)
        self.row = torch.zeros_like(self.row, device=pl_module.device)
        self.steps, self.loss = trainer.global_step, None
        others = [] if _scaler(trainer) else [one for one in trainer.optimizers if not _skips_by_flag(one)]
        self.guarded = [(one, guard(one, lambda: bool(self.found))) for one in others]
        if others and not _reading_is_free(pl_module.device) and trainer.is_global_zero:
            names = ", ".join(type(one).__name__ for one in others)
            warn(
                f"Health reads the {pl_module.device.type} device before every update, which is slower: {names} does "
                "not skip NaN by itself. LARS does, and SGD, Adam, AdamW and Adagrad of torch with fused=True"
            )

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Store the loss, which may be NaN although the gradient is finite."""
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Make the optimizer skip the update if any rank has NaN or infinity."""
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = _total_norm(grads, pl_module.device)
        total, self.loss = total if self.loss is None else total + self.loss, None
        found = (~torch.isfinite(total)).to(torch.float32)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        if _scaler(trainer) is None and _skips_by_flag(optimizer):
            optimizer.found_inf = found
        self.found = found
        bad = found > 0
        self.row = torch.where(bad, self.row + 1, 0)
        first = torch.where(bad & (self.first_bad < 0), trainer.global_step, self.first_bad)
        # With the fp16 scaler, a finite step ends a row of overflows.
        self.first_bad = first if _scaler(trainer) is None else torch.where(bad, first, -1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the counters and the signals, at the same steps on every rank."""
        if (indices := indices_of(batch)) is not None:
            self.batches.append(indices)
        if trainer.global_step > self.steps:
            self.recent.append((trainer.global_step - 1, self.batches))
            self.batches, self.steps = [], trainer.global_step
        if _reading_is_free(pl_module.device) or trainer.global_step % self.every_n_steps == 0:
            self._raise_if_bad(trainer)
        if not trainer.is_last_batch:
            self._stop_if_asked(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the guards from the optimizers."""
        for optimizer, step in self.guarded:
            optimizer.step = step
        self.guarded = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop on a signal that came at the last step of the epoch before, or while it was scored."""
        self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the counters before the epoch is scored or saved."""
        self._raise_if_bad(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save NaN or infinity, so that the newest checkpoint is always finite.

        All tensors are checked: the forward pass of a skipped step has still changed the BatchNorm statistics.

        Raises:
            NonFiniteError: a weight, a buffer or a state of the optimizer is not finite.
        """
        self._raise_if_bad(trainer)
        name = _not_finite(checkpoint["state_dict"], trainer.optimizers)
        if name is not None:
            raise NonFiniteError(
                f"NaN or infinity in {name} at step {trainer.global_step}: this state was not saved, and the last "
                "finite checkpoint stays. Lower optimizer.lr, raise schedule.warmup_epochs, or train with "
                "trainer.precision=bf16-mixed or 32-true; then resume with ckpt_path=last force=true"
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
        batches = next((found for s, found in self.recent if s == step), [])
        indices = [index for batch in batches for index in batch.tolist()]
        shown = ", ".join(map(str, indices[:16])) + (", ..." if len(indices) > 16 else "")
        images = f" (images {shown})" if indices else ""
        found = f"{OVERFLOWS_IN_A_ROW} fp16 overflows in a row since" if scaled else _FOUND
        raise NonFiniteError(
            f"{found} step {step}{images}: the update was skipped, and the last finite checkpoint stays. "
            "Lower optimizer.lr, raise schedule.warmup_epochs, or look at these images; "
            "then resume with ckpt_path=last force=true"
        )


def guard(optimizer: torch.optim.Optimizer, is_bad: Callable[[], bool]) -> Callable[..., Any]:
    """Make an optimizer skip the updates whose gradients are not finite; return its ``step`` without the guard.

    The optimizer's weights, buffers and counters do not change in a skipped update. L-BFGS calls its closure several
    times in an update, so there each evaluation that is not finite counts as a gradient of zero.

    Args:
        optimizer: any; its ``step`` is replaced.
        is_bad: whether the gradients are not finite; called after the closure, which computes them.
    """
    original = optimizer.step

    @functools.wraps(original)  # copies the mark by which torch's schedulers count updates
    def step(closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        if isinstance(optimizer, torch.optim.LBFGS) and closure is not None:
            return original(lambda: _zeroed(optimizer, closure(), is_bad()), **options)
        loss = None if closure is None else closure()
        if not is_bad():
            original(**options)
        return loss

    optimizer.step = step  # type: ignore[method-assign]
    return original


def _zeroed(optimizer: torch.optim.Optimizer, loss: Any, bad: bool) -> Any:
    if bad:
        optimizer.zero_grad(set_to_none=True)
    return loss


def _skips_by_flag(optimizer: Any) -> bool:
    """Return whether the optimizer reads ``found_inf``, as LARS and the fused optimizers of torch do."""
    return hasattr(type(optimizer), "found_inf") or getattr(optimizer, "_step_supports_amp_scaling", False) is True


def _total_norm(grads: list[Tensor], device: torch.device) -> Tensor:
    """Return a number that is finite if all gradients are."""
    dense = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    norms = torch._foreach_norm(dense) if dense else [torch.zeros((), device=device)]
    return torch.stack([norm.to(device) for norm in norms]).sum()


def _reading_is_free(device: torch.device) -> bool:
    return device.type == "cpu"


def _not_finite(weights: Mapping[str, Any], optimizers: Iterable[torch.optim.Optimizer]) -> str | None:
    """Return the name of the first tensor with NaN or infinity, None if all are finite; the device is read once."""
    moments = [(f"the optimizer's {k}", v) for o in optimizers for s in o.state.values() for k, v in s.items()]
    floats = [(k, v) for k, v in (*weights.items(), *moments) if isinstance(v, Tensor) and v.is_floating_point()]
    if not floats:
        return None
    bad = torch.stack([~v.isfinite().all().to(floats[0][1].device) for _, v in floats])
    return next((name for (name, _), is_bad in zip(floats, bad.tolist(), strict=True) if is_bad), None)


def _scaler(trainer: L.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _largest(value: int, trainer: L.Trainer) -> int:
    """Return the largest value over all ranks, exchanged over the CPU, so that no device is read."""
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(value)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared)
