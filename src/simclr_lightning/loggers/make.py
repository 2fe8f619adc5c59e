"""Make and close the loggers of a run: metrics.csv always; W&B, TensorBoard, MLflow and Comet on request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from simclr_lightning.extras import require
from simclr_lightning.loggers.background import Background
from simclr_lightning.loggers.metrics_csv import MetricsCSV
from simclr_lightning.loggers.services import make_comet, make_mlflow
from simclr_lightning.loggers.wandb import Tracker, log_results, make_tracker
from simclr_lightning.run_folder import METRICS, flatten


def make_loggers(cfg: Any, folder: Path, *, name: str, step: int, plain: dict[str, Any]) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        cfg: the logger group of the configuration.
        folder: the run's folder.
        name: the run's name in the services.
        step: the optimizer step at which the run starts.
        plain: the whole configuration in plain containers: the hyperparameters.

    Raises:
        ValueError: the package of the logger is not installed.
    """
    loggers: list[Logger] = [MetricsCSV(folder / METRICS, step=step)]
    chosen = _chosen(cfg)
    if "tensorboard" in chosen:
        require("tensorboard", "logger=tensorboard")
        options = cfg.get("tensorboard") or {}
        loggers.append(TensorBoardLogger(folder, name="", version="tensorboard", **options))
    if "wandb" in chosen:
        loggers.append(make_tracker(cfg, folder, plain, name=name))
    if "mlflow" in chosen:
        loggers.append(make_mlflow(cfg.get("mlflow") or {}, folder, name=name))
    if "comet" in chosen:
        loggers.append(make_comet(cfg.get("comet") or {}, folder, name=name))
    for logger in loggers:  # metrics.csv and W&B do nothing: they have the configuration
        logger.log_hyperparams(flatten(plain))
    return loggers


def _chosen(cfg: Any) -> set[str]:
    """Return the names of the loggers: ``logger=[a,b]`` merges their options into one node."""
    of_wandb = {"wandb"} if "job_type" in cfg else set()
    return {str(cfg.name)} | of_wandb | {name for name in ("tensorboard", "mlflow", "comet") if name in cfg}


def close_loggers(trainer: L.Trainer, folder: Path, summary: Mapping[str, Any]) -> None:
    """Close all loggers; before, log the run's pictures to each of them, and the summary to W&B."""
    pictures = sorted(folder.glob("*.png"))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _log_images(logger, pictures, summary)
        logger.finalize("success")
        if isinstance(logger, Tracker):
            logger.close(lambda run: log_results(run, folder, summary))
        if isinstance(logger, Background):
            logger.close(pictures)


def _log_images(logger: TensorBoardLogger, pictures: list[Path], summary: Mapping[str, Any]) -> None:
    """Log pictures and, as ``hp_metric`` of the hyperparameters, the held-out score."""
    for path in pictures:
        logger.experiment.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")
    if summary.get("held_out_score") is not None:
        logger.log_metrics({"hp_metric": summary["held_out_score"]}, summary["steps"])
