"""Make and close the loggers of a run: metrics.csv always, W&B or TensorBoard on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger

from simclr_lightning.extras import require
from simclr_lightning.loggers.metrics_csv import MetricsCSV
from simclr_lightning.loggers.wandb import Tracker, log_results, make_tracker
from simclr_lightning.run_folder import METRICS


def make_loggers(cfg: Any, folder: Path, *, name: str, step: int, plain: dict[str, Any]) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        cfg: the logger group of the configuration.
        folder: the run's folder.
        name: the run's name in W&B.
        step: the optimizer step at which the run starts.
        plain: the whole configuration in plain containers, for W&B.

    Raises:
        ValueError: the package of the logger is not installed.
    """
    loggers: list[Logger] = [MetricsCSV(folder / METRICS, step=step)]
    if cfg.name == "tensorboard":
        require("tensorboard", "logger=tensorboard")
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    if cfg.name == "wandb":
        loggers.append(make_tracker(cfg, folder, plain, name=name))
    return loggers


def close_loggers(trainer: L.Trainer, folder: Path, summary: Mapping[str, Any]) -> None:
    """Close all loggers; before, log the run's pictures and summary to W&B."""
    for logger in trainer.loggers:
        logger.finalize("success")
        if isinstance(logger, Tracker):
            logger.close(lambda run: log_results(run, folder, summary))
