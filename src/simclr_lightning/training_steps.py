"""What a LightningModule asks its Trainer: to log the values of its steps, and how many steps and images there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor


class StepLog:
    """Log the metrics of training steps by name, and show the loss in the progress bar.

    The device is not read between the Trainer's log steps. At these, and at the last step of an epoch, the values are
    means over ranks; at other steps they are those of this rank.
    """

    def __init__(self) -> None:
        self.shown: Tensor | None = None

    def log(
        self, module: L.LightningModule, metrics: Mapping[str, Tensor], *, loss: str, count: int, every_metric: bool
    ) -> None:
        """Log the metrics of one step.

        Args:
            module: in its ``training_step``.
            metrics: detached values of shape ().
            loss: the name of the metric that the bar shows.
            count: images of this process.
            every_metric: False shows the loss in the bar and logs nothing else.
        """
        trainer: Any = module.trainer
        every = max(trainer.log_every_n_steps, 1)
        is_read = trainer.is_last_batch or (trainer.global_step + 1) % every == 0
        if every_metric:
            if is_read and trainer.world_size > 1:
                reduce = trainer.strategy.reduce  # in place, so it gets copies
                metrics = {name: reduce(value.clone(), reduce_op="mean") for name, value in metrics.items()}
            module.log_dict(dict(metrics), on_step=True, on_epoch=False, batch_size=count)
        if trainer.progress_bar_callback is not None:
            value = metrics[loss]
            if is_read or self.shown is None or value.device.type == "cpu":
                self.shown = value.float().cpu()
            # The bar reads its values at every step, so it gets one that is on the CPU.
            module.log("loss", self.shown, prog_bar=True, logger=False, batch_size=count)


def loaded_batch(trainer: Any) -> int | None:
    """Return the images of all devices in one batch of the training loader, or None if the loader does not tell.

    A data module whose ``batch_is_global`` is True tells it by its ``batch_size``; a loader's is that of one device.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if getattr(data, "batch_is_global", False):
        return int(data.batch_size)
    trainer.fit_loop.setup_data()  # with max_steps alone, the Trainer does this later
    loader = trainer.train_dataloader
    local = getattr(getattr(loader, "batch_sampler", None), "batch_size", None) or getattr(loader, "batch_size", None)
    return local * int(trainer.world_size) if isinstance(local, int) else None


def training_length(trainer: Any) -> tuple[int, int]:
    """Return the optimizer steps of the whole training and those of an epoch.

    Raises:
        ValueError: the training has no end.
    """
    trainer.fit_loop.setup_data()
    total, batches = trainer.estimated_stepping_batches, trainer.num_training_batches
    if total == math.inf:
        raise ValueError("the schedule needs the length of the training: set max_epochs or max_steps")
    return int(total), int(total if batches == math.inf else -(-batches // trainer.accumulate_grad_batches))
