"""Make the trainer of a run: options, callbacks, loggers, length."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import lightning as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from simclr_lightning.app.config.plain import to_plain
from simclr_lightning.app.runs.run import run_name
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.batchnorm import SharedBatchNorm
from simclr_lightning.app.training.devices import accelerator, device_count, devices_of_a_batchnorm
from simclr_lightning.app.training.numbers import CurrentNumbers
from simclr_lightning.app.training.signals import KeepSignals
from simclr_lightning.app.training.stock import (
    draws_progress,
    make_callbacks,
    make_profiler,
    make_strategy,
    needs_checkpointing,
)
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

# Keys of `trainer` that are not passed on as they are. The data module makes shorter epochs.
_MADE_HERE: Final = frozenset(
    {
        *("_target_", "sync_batchnorm", "strategy", "profiler", "fast_dev_run", "enable_progress_bar"),
        *("limit_train_batches", "overfit_batches"),
    }
)


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
    every = cfg.trainer.get("log_every_n_steps") or cfg.callbacks.metrics.every_n_steps
    metrics = StepMetrics(every_n_steps=every)
    further = make_callbacks(cfg, folder)
    fast = bool(cfg.trainer.get("fast_dev_run"))
    scores = {**cfg.callbacks.online, "select": cfg.select}
    online = OnlineScore(**(scores if not fast else {"every_n_epochs": 0}), stop=STOP.pending)
    if draws_progress(further) or cfg.trainer.get("enable_progress_bar") is False:
        console = Console(highlight=False, soft_wrap=True, force_terminal=False)
    progress = RunProgress(total_steps=total, metrics=metrics, online=online, console=console)
    trainer = L.Trainer(
        **{
            **trainer_options(cfg, device_count(cfg), steps_per_epoch),
            "enable_checkpointing": needs_checkpointing(further),
            "enable_progress_bar": draws_progress(further),
        },
        fast_dev_run=cfg.trainer.get("fast_dev_run") or False,
        profiler=make_profiler(cfg, folder),
        default_root_dir=folder,
        logger=make_loggers(cfg.logger, folder, name=run_name(folder), step=first_step, plain=to_plain(cfg)),
        callbacks=[
            metrics,
            *([] if cfg.ema is None else [AveragedWeights(cfg.ema)]),
            Health(stop=STOP.pending),
            *([] if fast else [Hardness(folder / SIMILARITY, **cfg.callbacks.hardness)]),
            online,
            *further,  # after the metrics that they read, and before the checkpoints that hold their state
            *([] if fast else [Checkpoints(folder / CHECKPOINTS, online=online, **cfg.callbacks.checkpoints)]),
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
    if overfit := cfg.trainer.get("overfit_batches"):
        # The data module reads it. The limit of the data module already sets the length of an epoch.
        trainer.overfit_batches = overfit  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    return trainer, progress


def trainer_options(cfg: DictConfig, devices: int, steps_per_epoch: int) -> dict[str, Any]:
    """Return the arguments of the Trainer, except its folder, loggers, callbacks, plugins and profiler."""
    options = {name: value for name, value in to_plain(cfg.trainer).items() if name not in _MADE_HERE}
    kind = accelerator(cfg)
    listed = cfg.trainer.devices if OmegaConf.is_list(cfg.trainer.devices) and kind == "cuda" else None
    return {
        "benchmark": kind == "cuda" and not cfg.trainer.deterministic,  # sizes never change: the fastest kernels pay
        "enable_model_summary": False,
        **options,
        "precision": performance.precision(cfg, kind),
        "accelerator": kind,
        "devices": devices if listed is None else list(listed)[:devices],
        "strategy": make_strategy(cfg, kind, devices * cfg.trainer.num_nodes),
        "use_distributed_sampler": False,  # the data module gives every rank its part of the global batch
        "enable_checkpointing": False,  # Checkpoints writes them
        "enable_progress_bar": False,  # RunProgress shows it
        "limit_val_batches": 0,  # OnlineScore scores between epochs
        "num_sanity_val_steps": 0,
        # Callbacks of others read it. Lightning warns if it is above the steps of an epoch.
        "log_every_n_steps": min(cfg.trainer.get("log_every_n_steps") or 50, steps_per_epoch),
    }


def total_steps(cfg: DictConfig, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the whole run: max_steps, or max_epochs if that comes earlier."""
    if fast := cfg.trainer.get("fast_dev_run"):
        return int(fast)
    by_epochs = int(cfg.trainer.max_epochs) * steps_per_epoch
    return by_epochs if cfg.trainer.max_steps < 0 else min(by_epochs, int(cfg.trainer.max_steps))


def quiet_libraries() -> None:
    """Silence Lightning's banners, which do not concern this run, and warnings that are wrong for it."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)  # on request only
    # Sets in memory are read by no worker; folders have their own key.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning's own checkpoint callbacks look for files that a new run lacks, and a resumed run has.
    for text in ("was called without a model", "there is no last checkpoint available", "exists and is not empty"):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    # An online score is there only in the epochs that compute it.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")
    # Lightning 2.6 asks torch for this in an old way.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
