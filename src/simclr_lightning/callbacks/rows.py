"""What callbacks share: the run's log and the rows of its loggers."""

from __future__ import annotations

import logging

import lightning as L
import torch

LOG = logging.getLogger("simclr_lightning")


def log_row(trainer: L.Trainer, values: dict[str, float]) -> None:
    """Give values that are the same on every rank to the loggers, and to callbacks that watch a metric."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)
