"""Log the values of training steps with ``self.log``, without reading the device between the Trainer's log steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor


class StepLog:
    """Log the metrics of training steps by name, and show the loss in the progress bar.

    At the Trainer's log steps and at the last step of an epoch, the values are means over ranks; between them they are
    those of this rank.
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
