"""What happens around the training step: health, scores between epochs, checkpoints, step metrics, progress.

Every callback works without the command line: ``Trainer(callbacks=[Health(), OnlineScore(), ...])``.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from simclr_lightning import checkpoint as checkpoints
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.evaluation import effective_rank, extract, knn_predict
from simclr_lightning.ntxent import nt_xent
from simclr_lightning.simclr import SimCLR

LOG = logging.getLogger("simclr_lightning")
HELD_OUT_AT_MOST = 1024  # images of the held-out tenth that the label-free score uses
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
    ``found_inf``; the host looks every ``every_n_steps`` steps (every step on the CPU, where looking is free).

    Args:
        stop: returns the number of the signal that asks this process to stop, or 0.
        every_n_steps: optimiser steps between two looks on an accelerator.
    """

    def __init__(self, *, stop: Callable[[], int] = lambda: 0, every_n_steps: int = 10) -> None:
        self.stop = stop
        self.every_n_steps = every_n_steps
        self.recent: deque[tuple[int, Tensor]] = deque(maxlen=every_n_steps)
        self.loss: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counters live on the device, so that counting does not wait for it."""
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=pl_module.device)
        self.row = torch.zeros((), dtype=torch.int64, device=pl_module.device)

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
        self.first_bad = torch.where(bad & (self.first_bad < 0), trainer.global_step, self.first_bad)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the counters and the signals at the same steps on every rank, and act together."""
        self.recent.append((trainer.global_step - 1, batch["indices"]))
        if pl_module.device.type != "cpu" and trainer.global_step % self.every_n_steps:
            return
        self._raise_if_bad(trainer)
        signum = _largest(self.stop(), trainer)
        if signum:
            save_last(trainer)
            raise Stopped(signum)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look before anything of the epoch is scored or saved."""
        self._raise_if_bad(trainer)

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


class OnlineScore(L.Callback):
    """Scores the encoder between epochs on the held-out part of train, never on test.

    With labels: top-1 of kNN (cosine, majority vote of ``k``), bank = train without the held-out part. Without: the
    NT-Xent of held-out views, lower is better. Logged as ``online/knn_top1`` or ``online/held_out_loss``, beside
    ``online/effective_rank`` of h.

    Args:
        every_n_epochs: epochs between two scores; 0 turns them off.
        k: neighbours that vote.
        bank_at_most: images of the bank, drawn evenly when train has more.
    """

    def __init__(self, *, every_n_epochs: int = 1, k: int = 20, bank_at_most: int = 50_000) -> None:
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.bank_at_most = bank_at_most
        self.score: float | None = None  # of the epoch that just ended, higher is better
        self.latest: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score on rank 0, tell every rank."""
        self.score = None
        if not self.every_n_epochs or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        assert isinstance(pl_module, SimCLR)
        assert isinstance(data, ViewsDataModule)
        found: dict[str, float] = self._scores(pl_module, data) if trainer.is_global_zero else {}
        found = trainer.strategy.broadcast(found)
        self.latest = found
        self.score = found.get("online/knn_top1", -found.get("online/held_out_loss", 0.0))
        log_row(trainer, found)

    def _scores(self, module: SimCLR, data: ViewsDataModule) -> dict[str, float]:
        splits = data.load()
        if splits.train.labels is None or not len(splits.held_out):
            return _held_out_loss(module, data)
        bank = bank_indices(splits.train.labels, splits.held_out)
        bank = bank[:: -(-len(bank) // self.bank_at_most)]
        rows = torch.cat((bank, splits.held_out))
        h = extract(module.encoder, data.eval_batches(splits.train, rows), device=module.device)
        labels = splits.train.labels
        k = min(self.k, len(bank))
        predicted = knn_predict(h[: len(bank)], labels[bank], h[len(bank) :], k=k)
        rank = warn_if_collapsed(h[len(bank) :])
        top1 = (predicted == labels[splits.held_out]).float().mean().item()
        return {"online/knn_top1": top1, "online/effective_rank": rank}


class Checkpoints(L.Callback):
    """Writes last.ckpt (and previous.ckpt) between epochs and steps, and best.ckpt by the online score.

    Args:
        folder: the checkpoints' folder.
        online: the callback whose score picks the best; it must come earlier in the list.
        every_n_epochs: epochs between two saves.
        every_n_steps: optimiser steps between two saves inside an epoch; None for none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        online: OnlineScore | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        self.folder = folder
        self.online = online
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.best: float | None = None

    @property
    def last(self) -> Path:
        """The newest checkpoint's file."""
        return self.folder / checkpoints.LAST

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best = state_dict["best"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the loops go on from the optimiser step alone."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.samples_at(int(checkpoint["global_step"])) // data.batch_size
        checkpoints.rewind(checkpoint, batches=batches, steps_per_epoch=data.steps_per_epoch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save inside an epoch; its last batch is left to the epoch's own save."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.last)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after the online score, which decides on the best."""
        score = self.online.score if self.online else None
        better = score is not None and (self.best is None or score > self.best)
        if better:
            self.best = score
        if better or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            trainer.save_checkpoint(self.last)
        if better and trainer.is_global_zero:
            checkpoints.copy(self.last, self.folder / checkpoints.BEST)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last state is always on disk when training ends."""
        trainer.save_checkpoint(self.last)


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


class RunProgress(L.Callback):
    """One bar for the whole run with images/s, time left, loss and the online score; plain lines without a terminal.

    Also the clock of the run: ``images_per_second`` counts training alone, scores and saves excluded.

    Args:
        total_steps: optimiser steps of the whole run.
        metrics: where the latest loss is found; earlier in the list of callbacks.
        online: where the latest score is found; earlier in the list too.
        console: where to draw.
    """

    def __init__(
        self, *, total_steps: int, metrics: StepMetrics, online: OnlineScore, console: Console | None = None
    ) -> None:
        self.total_steps = total_steps
        self.metrics = metrics
        self.online = online
        self.console = console or Console()
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.seconds = 0.0
        self.images = 0
        self.mark = 0.0

    @property
    def images_per_second(self) -> float:
        """Images a second over all ranks while training, since this process started."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar on rank 0."""
        if trainer.is_global_zero and self.console.is_terminal:
            text = TextColumn("{task.description}")
            self.bar = Progress(
                text,
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.total_steps, completed=trainer.global_step)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar and the clock."""
        now = time.perf_counter()
        self.seconds += now - self.mark if self.mark else 0.0
        self.mark = now
        self.images += len(batch["indices"]) * trainer.world_size
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.global_step, description=self._line(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A line an epoch for the log; without a terminal it is printed too."""
        if not trainer.is_global_zero:
            return
        images_left = (self.total_steps - trainer.global_step) * self._batch(trainer)
        line = f"{self._line(trainer)}, {images_left / max(self.images_per_second, 1e-9):.0f} s left"
        LOG.info(line)
        if self.bar is None:
            self.console.print(line, highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the bar away."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the bar away before anything is said."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _batch(self, trainer: L.Trainer) -> int:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return int(data.batch_size)

    def _line(self, trainer: L.Trainer) -> str:
        parts = [
            f"epoch {trainer.current_epoch + 1}",
            f"step {trainer.global_step}/{self.total_steps}",
            f"{self.images_per_second:.0f} images/s",
        ]
        if "train/loss_step" in self.metrics.latest:
            parts.append(f"loss {self.metrics.latest['train/loss_step']:.3f}")
        shown = {"online/knn_top1": ("kNN", "{:.1%}"), "online/held_out_loss": ("held-out loss", "{:.3f}")}
        for key, (name, form) in shown.items():
            if key in self.online.latest:
                parts.append(f"{name} {form.format(self.online.latest[key])}")
        return ", ".join(parts)


def bank_indices(labels: Tensor, held_out: Tensor) -> Tensor:
    """Indices of labelled training images without the held-out part: the bank of kNN and the data of the probe."""
    keep = labels >= 0
    keep[held_out] = False
    return keep.nonzero().flatten()


def log_row(trainer: L.Trainer, values: dict[str, float]) -> None:
    """Give values that are the same on every rank to the loggers, and to callbacks that watch a metric."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)


def save_last(trainer: L.Trainer) -> None:
    """Save last.ckpt through the trainer's `Checkpoints`, when it has one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints):
            trainer.save_checkpoint(callback.last)


def warn_if_collapsed(h: Tensor) -> float:
    """The effective rank of h (n, d), with a warning when the embedding has collapsed."""
    rank = effective_rank(h)
    if rank < 2:
        text = (
            f"the embedding has collapsed: effective rank {rank:.2f} of {h.shape[1]}; lower optimizer.lr or raise "
            "loss.temperature"
        )
        LOG.warning(text)
        Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {text}", highlight=False)
    return rank


@torch.no_grad()
def _held_out_loss(module: SimCLR, data: ViewsDataModule) -> dict[str, float]:
    """NT-Xent of held-out views in evaluation mode, in chunks of 128 images so that it does not depend on N."""
    held_out = data.load().held_out
    held_out = held_out[:HELD_OUT_AT_MOST] if len(held_out) else torch.arange(min(64, len(data.load().train)))
    was_training = module.training
    module.eval()
    losses, features = [], []
    for part in held_out.split(128):
        x_a, x_b = (x.to(module.device) for x in data.view_pairs(part))
        h_a, h_b = module.encoder(x_a), module.encoder(x_b)
        features.append(h_a.float().cpu())
        z_a, z_b = module.projector(h_a), module.projector(h_b)
        # Only this rank is here, so it must not wait for the others' rows.
        out = nt_xent(z_a, z_b, module.loss.temperature, gather=False)
        losses.append(out.loss.item() * len(part))
    module.train(was_training)
    rank = warn_if_collapsed(torch.cat(features))
    return {"online/held_out_loss": sum(losses) / len(held_out), "online/effective_rank": rank}


def _scaler(trainer: L.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _largest(value: int, trainer: L.Trainer) -> int:
    """The largest value over all ranks, through the CPU's process group: no device is read."""
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(value)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared)
