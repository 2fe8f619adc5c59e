"""Shared by the callbacks: the log of the run, warnings, rows of metrics, and the data module of a trainer."""

from __future__ import annotations

import logging

import lightning as L
import torch
from rich.console import Console

from simclr_lightning.data import ViewsDataModule

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


def views_data(trainer: L.Trainer) -> ViewsDataModule | None:
    """Return the trainer's data module if it is a `ViewsDataModule`, else None."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, ViewsDataModule) else None
