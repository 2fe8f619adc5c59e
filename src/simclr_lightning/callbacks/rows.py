"""Shared by the callbacks: the log of the run, warnings, and rows of metrics."""

from __future__ import annotations

import logging

import lightning as L
import torch
from rich.console import Console

LOG = logging.getLogger("simclr_lightning")


def warn(text: str) -> None:
    """Write a warning to the log and to stderr."""
    LOG.warning(text)
    Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {text}", highlight=False)


def log_row(trainer: L.Trainer, values: dict[str, float]) -> None:
    """Log metrics with every logger, and set them in ``trainer.callback_metrics``; call it on every rank.

    Args:
        trainer: its step and epoch are added to the row.
        values: by name, equal on all ranks.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step)
