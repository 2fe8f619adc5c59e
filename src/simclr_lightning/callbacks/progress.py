"""Draw one progress bar for the whole run, and measure its images per second."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from simclr_lightning.batches import image_count
from simclr_lightning.callbacks.metrics import StepMetrics
from simclr_lightning.callbacks.online import OnlineScore
from simclr_lightning.callbacks.rows import LOG


class RunProgress(L.Callback):
    """Show images/s, time left, loss and online scores: in a progress bar, or without a terminal in a line per epoch.

    ``images_per_second`` measures the training steps only, without scores and saves between epochs.

    Args:
        total_steps: optimizer steps of the whole run; None: what the trainer estimates.
        metrics: has the latest loss; must come earlier in the list. None: no loss is shown.
        online: has the latest scores; must come earlier in the list. None: no score is shown.
        console: where to draw; None: stdout.
    """

    def __init__(
        self,
        *,
        total_steps: int | None = None,
        metrics: StepMetrics | None = None,
        online: OnlineScore | None = None,
        console: Console | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.metrics = metrics
        self.online = online
        self.console = console or Console()
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.seconds = 0.0
        self.images = 0
        self.per_step = 0  # images of the last optimizer step, over all ranks
        self.mark = 0.0

    @property
    def images_per_second(self) -> float:
        """Images per second of all ranks together, since this process started; 0 before the first step."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar on rank 0."""
        if self.total_steps is None and (steps := trainer.estimated_stepping_batches) != math.inf:
            self.total_steps = int(steps)
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
        self.images += (count := image_count(batch) * trainer.world_size)
        self.per_step = count * trainer.accumulate_grad_batches
        if self.bar is not None:
            self.bar.update(self.task, completed=trainer.global_step, description=self._line(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a line to the log; without a terminal, also print it."""
        if not trainer.is_global_zero:
            return
        line = self._line(trainer)
        if self.total_steps is not None:
            images_left = (self.total_steps - trainer.global_step) * self.per_step
            line += f", {images_left / max(self.images_per_second, 1e-9):.0f} s left"
        LOG.info(line)
        if self.bar is None:
            self.console.print(line, highlight=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the bar before the error is printed."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, trainer: L.Trainer) -> str:
        parts = [
            f"epoch {trainer.current_epoch + 1}",
            f"step {trainer.global_step}" + ("" if self.total_steps is None else f"/{self.total_steps}"),
            f"{self.images_per_second:.0f} images/s",
        ]
        if self.metrics is not None and "train/loss_step" in self.metrics.latest:
            parts.append(f"loss {self.metrics.latest['train/loss_step']:.3f}")
        shown = {
            "online/knn_top1": ("kNN", "{:.1%}"),
            "online/linear_top1": ("linear", "{:.1%}"),
            "online/held_out_loss": ("held-out loss", "{:.3f}"),
        }
        for key, (name, form) in shown.items():
            if self.online is not None and key in self.online.latest:
                parts.append(f"{name} {form.format(self.online.latest[key])}")
        return ", ".join(parts)
