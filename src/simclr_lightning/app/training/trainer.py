"""Make the trainer of a run: options, callbacks, loggers, length."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from rich.console import Console

from simclr_lightning.app.config.plain import to_plain
from simclr_lightning.app.runs.run import run_name
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.batchnorm import SharedBatchNorm
from simclr_lightning.app.training.devices import accelerator, device_count, devices_of_a_batchnorm
from simclr_lightning.app.training.numbers import CurrentNumbers
from simclr_lightning.app.training.signals import KeepSignals
from simclr_lightning.callbacks import (
    AtomicCheckpointIO,
    AveragedWeights,
    Checkpoints,
    Hardness,
    Health,
    OnlineScore,
    RunProgress,
    StepMetrics,
)
from simclr_lightning.loggers.make import make_loggers
from simclr_lightning.run_folder import CHECKPOINTS, SIMILARITY
from simclr_lightning.stopping import STOP


def make_trainer(
    folder: Path,
    cfg: DictConfig,
    *,
    total: int,
    steps_per_epoch: int,
    console: Console,
    first_step: int = 0,
    more: Sequence[L.Callback] = (),
) -> tuple[L.Trainer, RunProgress]:
    """Return the trainer of a run with all its callbacks and loggers, and the callback that shows the progress.

    Args:
        folder: the run's folder.
        cfg: the resolved configuration.
        total: optimizer steps of the whole run.
        steps_per_epoch: of the data.
        console: where the progress is shown.
        first_step: optimizer steps made before.
        more: callbacks that come last.
    """
    metrics = StepMetrics(every_n_steps=cfg.callbacks.metrics.every_n_steps)
    online = OnlineScore(**cfg.callbacks.online, select=cfg.select, stop=STOP.pending)
    progress = RunProgress(total_steps=total, metrics=metrics, online=online, console=console)
    trainer = L.Trainer(
        **trainer_options(cfg, device_count(cfg), steps_per_epoch),
        default_root_dir=folder,
        logger=make_loggers(cfg.logger, folder, name=run_name(folder), step=first_step, plain=to_plain(cfg)),
        callbacks=[
            metrics,
            *([] if cfg.ema is None else [AveragedWeights(cfg.ema)]),
            Health(stop=STOP.pending),
            Hardness(folder / SIMILARITY, **cfg.callbacks.hardness),
            online,
            Checkpoints(folder / CHECKPOINTS, online=online, **cfg.callbacks.checkpoints),
            progress,
            CurrentNumbers(),
            KeepSignals(),
            *more,
        ],
        plugins=[
            AtomicCheckpointIO(),
            *([SharedBatchNorm(shared)] if (shared := devices_of_a_batchnorm(cfg)) > 1 else []),
        ],
    )
    return trainer, progress


def trainer_options(cfg: DictConfig, devices: int, steps_per_epoch: int) -> dict[str, Any]:
    """Return the arguments of the Trainer, except its folder, loggers, callbacks and plugins."""
    options = to_plain(cfg.trainer)
    for ours in ("_target_", "sync_batchnorm"):
        options.pop(ours, None)
    kind = accelerator(cfg)
    world = devices * cfg.trainer.num_nodes
    strategy: Any = "auto"
    if world > 1:
        from lightning.pytorch.strategies import DDPStrategy

        # The CPU side of the group carries signals and flags, so that no rank reads a device for them.
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        static = cfg.static_graph in ("auto", True)
        strategy = DDPStrategy(
            process_group_backend=backend,
            gradient_as_bucket_view=True,
            static_graph=static,
            find_unused_parameters=not static,
        )
    return {
        "benchmark": kind == "cuda" and not cfg.trainer.deterministic,  # sizes never change: the fastest kernels pay
        **options,
        "precision": performance.precision(cfg, kind),
        "accelerator": kind,
        "devices": devices,
        "strategy": strategy,
        "use_distributed_sampler": False,  # the data module gives every rank its part of the global batch
        "enable_checkpointing": False,  # Checkpoints writes them
        "enable_progress_bar": False,  # RunProgress shows it
        "enable_model_summary": False,
        "limit_val_batches": 0,  # OnlineScore scores between epochs
        "num_sanity_val_steps": 0,
        "log_every_n_steps": min(50, steps_per_epoch),  # nothing is logged by it; larger than an epoch it warns
    }


def total_steps(cfg: DictConfig, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the whole run: max_steps, or max_epochs if that comes earlier."""
    by_epochs = int(cfg.trainer.max_epochs) * steps_per_epoch
    return by_epochs if cfg.trainer.max_steps < 0 else min(by_epochs, int(cfg.trainer.max_steps))


def quiet_libraries() -> None:
    """Silence Lightning's banners, which do not concern this run, and three warnings that are wrong for it."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Sets in memory are read by no worker; folders have their own key.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning 2.6 asks torch for this in an old way.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # The position is the optimizer step (ViewsDataModule), so the loader needs no state.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
