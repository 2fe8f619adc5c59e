"""One process of a run: build the objects, train, and on rank 0 judge, draw, export and sum up."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import signal
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from simclr_lightning import checkpoint as checkpoints
from simclr_lightning import encoders
from simclr_lightning.callbacks import (
    LOG,
    AveragedWeights,
    Checkpoints,
    Hardness,
    Health,
    OnlineScore,
    RunProgress,
    StepMetrics,
    Stopped,
)
from simclr_lightning.cli import ahead, judge, speed
from simclr_lightning.cli.devices import accelerator, device_count
from simclr_lightning.cli.errors import UserError, describe
from simclr_lightning.cli.loggers import make_loggers
from simclr_lightning.cli.signals import KeepSignals, StopSignals
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.data.datamodule import check_batch
from simclr_lightning.simclr import SimCLR

VIEWS_AT_ONCE = 1 << 28  # bytes of float views, of all devices, up to which a batch with micro-batches has them whole


@dataclass(frozen=True)
class Parts:
    """What a configuration describes, built."""

    module: SimCLR
    data: ViewsDataModule
    untrained: nn.Module


def build(cfg: DictConfig) -> Parts:
    """Build the data module and the SimCLR module; the weights depend on ``seed`` alone.

    Args:
        cfg: the resolved configuration of a run, without the hydra node.
    """
    data = make_data(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    encoder = instantiate(cfg.model.encoder, _convert_="all")
    if cfg.model.weights is not None:
        encoders.load_weights(encoder, cfg.model.weights)
    projector = instantiate(cfg.model.projector)(encoder.feature_dim)
    module = SimCLR(
        encoder,
        projector,
        instantiate(cfg.loss),
        instantiate(cfg.optimizer),
        instantiate(cfg.schedule),
        global_batch_size=cfg.data.batch_size,
        micro_batch_size=cfg.micro_batch_size,
    )
    if cfg.model.channels_last:
        module.to(memory_format=torch.channels_last)
    return Parts(module, data, copy.deepcopy(encoder))


def make_data(cfg: DictConfig) -> ViewsDataModule:
    """Build the data module alone."""
    recipe = instantiate(cfg.views, _convert_="all")
    # Made twice by micro-batches, the views of a small batch would cost more time than they save memory.
    floats = 4 * 2 * 3 * recipe.size**2 * cfg.data.batch_size
    lazy = cfg.get("micro_batch_size") is not None and floats > VIEWS_AT_ONCE
    # Called with the recipe and not instantiated with it: Hydra would make a configuration of a dataclass.
    make = instantiate(cfg.data, _partial_=True, seed=cfg.seed, lazy=lazy)
    data: ViewsDataModule = make(recipe=recipe)
    return data


def run_job(
    folder: Path, cfg: DictConfig, *, checkpoint: Path | None, force: bool = False, started: float | None = None
) -> int:
    """Train and, on rank 0, finish the run. Returns the exit code.

    Args:
        folder: the run's folder, held by the caller's process or its parent.
        cfg: the resolved configuration.
        checkpoint: where to go on from.
        force: go on although the images differ from the checkpoint's.
        started: when the program began, for the wall time in the summary.

    Raises:
        UserError: and the library's ValueError, for what the user can mend; the summary then says "failed".
    """
    signals = StopSignals()
    signals.install()
    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    try:
        parts = build(cfg)
        parts.data.any_images = force
        return _train(folder, cfg, parts, checkpoint, signals, console, time.time() if started is None else started)
    except Stopped as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _stopped(folder, cfg, stop.signum, console)
        return 128 + stop.signum
    except BaseException as error:
        if _is_first_rank():
            with contextlib.suppress(OSError, ValueError):  # a full disk must not hide the error
                steps = _saved_step(folder)
                told = {"status": "failed", "steps": steps, "reason": describe(error)[0]}
                checkpoints.write_summary(folder, {**judge.blank_summary(cfg), **told})
        raise


def _train(
    folder: Path,
    cfg: DictConfig,
    parts: Parts,
    checkpoint: Path | None,
    signals: StopSignals,
    console: Console,
    started: float,
) -> int:
    devices = device_count(cfg)
    data = parts.data
    splits = data.load()
    check_batch(data.batch_size, images=len(splits.train), devices=devices * cfg.trainer.num_nodes)
    total = total_steps(cfg, data.steps_per_epoch)
    first_step = int(checkpoints.load(checkpoint)["global_step"]) if checkpoint else 0
    _check_space(folder, parts.module, numbers=3 if cfg.ema is None else 4)
    if _is_first_rank():
        _open_log(folder)
        for line in (*splits.notes, *opening_notes(cfg, parts, total)):
            console.print(line, style="dim", markup=False)
            LOG.info(line)
    trainer, progress = make_trainer(
        folder,
        cfg,
        total=total,
        steps_per_epoch=data.steps_per_epoch,
        signals=signals,
        console=console,
        first_step=first_step,
    )
    kind = accelerator(cfg)
    with speed.products(speed.uses_tf32(cfg, kind), kind):
        line = ahead.preflight_line(cfg, parts.module, data, trainer, devices=devices, steps=total - first_step)
    if line and _is_first_rank():
        console.print(line, style="dim", markup=False)
        LOG.info(line)
    if speed.compiles(cfg, kind, total - first_step):
        parts.module.compile_network()
    if first_step < total or not (folder / "checkpoints" / checkpoints.LAST).exists():
        with speed.products(speed.uses_tf32(cfg, kind), kind):
            trainer.fit(parts.module, datamodule=data, ckpt_path=checkpoint)
        if not _is_whole(cfg, data, trainer.global_step):
            raise UserError(f"training ended at step {trainer.global_step} of {total}; this is not a finished run")
    signals.training = False
    if not trainer.is_global_zero:
        return 0
    judge.finish(folder, cfg, parts.module, data, parts.untrained, trainer, progress, console, started=started)
    return 0


def make_trainer(
    folder: Path,
    cfg: DictConfig,
    *,
    total: int,
    steps_per_epoch: int,
    signals: StopSignals,
    console: Console,
    first_step: int = 0,
    more: Sequence[L.Callback] = (),
) -> tuple[L.Trainer, RunProgress]:
    """The trainer of a run with all its callbacks and loggers, and the one that shows the progress.

    Args:
        folder: the run's folder.
        cfg: the resolved configuration.
        total: optimiser steps of the whole run.
        steps_per_epoch: of the data.
        signals: asks the run to stop.
        console: where the progress is shown.
        first_step: optimiser steps made before.
        more: callbacks that come last.
    """
    metrics = StepMetrics(every_n_steps=cfg.callbacks.metrics.every_n_steps)
    online = OnlineScore(**cfg.callbacks.online, select=cfg.select, stop=signals.pending)
    progress = RunProgress(total_steps=total, metrics=metrics, online=online, console=console)
    trainer = L.Trainer(
        **trainer_options(cfg, device_count(cfg), steps_per_epoch),
        default_root_dir=folder,
        logger=make_loggers(cfg.logger, folder, step=first_step, plain=_plain(cfg)),
        callbacks=[
            metrics,
            *([] if cfg.ema is None else [AveragedWeights(cfg.ema)]),
            Health(stop=signals.pending),
            Hardness(folder / "similarity.csv", **cfg.callbacks.hardness),
            online,
            Checkpoints(folder / "checkpoints", online=online, **cfg.callbacks.checkpoints),
            progress,
            KeepSignals(signals),
            *more,
        ],
        plugins=[checkpoints.AtomicCheckpointIO()],
    )
    return trainer, progress


def _is_whole(cfg: DictConfig, data: ViewsDataModule, step: int) -> bool:
    """Whether the run is at its end: the epochs are counted by images, since a forced resume may change the batch."""
    epochs = data.samples_at(step) // (data.steps_per_epoch * data.batch_size)
    return epochs >= int(cfg.trainer.max_epochs) or 0 <= int(cfg.trainer.max_steps) <= step


def _check_space(folder: Path, module: SimCLR, *, numbers: int) -> None:
    """Three checkpoints of weights, two moments and what else there is of each weight must fit."""
    needed = 3 * numbers * sum(p.numel() * p.element_size() for p in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, and the run's checkpoints need {needed / 1e6:.0f} MB; make room, "
            "or give another hydra.run.dir="
        )


def total_steps(cfg: DictConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole run: max_steps, or max_epochs if that comes earlier."""
    by_epochs = int(cfg.trainer.max_epochs) * steps_per_epoch
    return by_epochs if cfg.trainer.max_steps < 0 else min(by_epochs, int(cfg.trainer.max_steps))


def opening_notes(cfg: DictConfig, parts: Parts, total: int) -> list[str]:
    """Lines that say what is about to happen."""
    devices = device_count(cfg) * cfg.trainer.num_nodes
    batch, images = parts.data.batch_size, len(parts.data.load().train)
    lines = [
        f"{images} images, {parts.data.steps_per_epoch} steps an epoch of {batch} images on {devices} "
        f"{accelerator(cfg)} device(s), {2 * batch - 2} negatives a view, {total} steps"
    ]
    if devices > 1 and accelerator(cfg) == "cpu":
        lines.append("BatchNorm statistics are per process on the CPU (synchronised BatchNorm exists on GPUs only)")
    lines += [line] if (line := speed.note(cfg, accelerator(cfg), total)) else []
    if cfg.micro_batch_size is not None:
        lines.append(
            f"micro-batches of {cfg.micro_batch_size} images with the gradient of {batch}; BatchNorm normalises each"
        )
    if cfg.ema is not None:
        lines.append(f"scores, best.ckpt and the exported encoder are of the weights' moving average (ema={cfg.ema})")
    schedule = parts.module.make_schedule
    epochs, spe = getattr(schedule, "warmup_epochs", 0), parts.data.steps_per_epoch
    if round(epochs * spe) > total:
        shortened = schedule.warmup_steps(spe, total)  # type: ignore[attr-defined]
        lines.append(f"warm-up of {epochs} epochs is longer than the run; it is shortened to {shortened} steps")
    if cfg.views.size <= 32 and parts.data.load().train.tensor is None:
        lines.append(
            f"views are {cfg.views.size} px; for a real encoder on a GPU: experiment=imagenet with the same data"
        )
    return lines


def trainer_options(cfg: DictConfig, devices: int, steps_per_epoch: int) -> dict[str, Any]:
    """What the Trainer is made with, apart from its folder, loggers, callbacks and plugins."""
    options = _plain(cfg.trainer)
    options.pop("_target_", None)
    kind = accelerator(cfg)
    world = devices * cfg.trainer.num_nodes
    strategy: Any = "auto"
    if world > 1:
        from lightning.pytorch.strategies import DDPStrategy

        # The CPU side of the group carries signals and flags, so that no rank reads a device for them.
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        strategy = DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)
    return {
        "benchmark": kind == "cuda" and not cfg.trainer.deterministic,  # sizes never change: the fastest kernels pay
        **options,
        "precision": speed.precision(cfg, kind),
        "accelerator": kind,
        "devices": devices,
        "strategy": strategy,
        "sync_batchnorm": world > 1 and kind == "cuda",
        "use_distributed_sampler": False,  # the data module gives every rank its part of the global batch
        "enable_checkpointing": False,  # Checkpoints writes them
        "enable_progress_bar": False,  # RunProgress shows it
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": min(50, steps_per_epoch),  # nothing is logged by it; larger than an epoch it warns
    }


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _stopped(folder: Path, cfg: DictConfig, signum: int, console: Console) -> None:
    if not _is_first_rank():
        return
    steps = 0
    with contextlib.suppress(OSError, ValueError):
        steps = _saved_step(folder)
        checkpoints.write_summary(folder, {**judge.blank_summary(cfg), "status": "stopped", "steps": steps})
    name = signal.Signals(signum).name
    console.print(f"stopped by {name}; saved at step {steps}. Go on with:")
    console.print(f"  python train.py ckpt_path='{judge.shown(folder)}'", soft_wrap=True, markup=False)


def _saved_step(folder: Path) -> int:
    found = checkpoints.newest(folder)
    return int(checkpoints.load(found[0])["global_step"]) if found else 0


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _open_log(folder: Path) -> None:
    """Lines of the run go to train.log with their time."""
    handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    for old in LOG.handlers[:]:
        LOG.removeHandler(old)
        old.close()
    LOG.addHandler(handler)


def quiet_libraries() -> None:
    """Lightning's banners say nothing about this run; two of its warnings are wrong for it."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Sets in memory are read by no worker; folders have their own key.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning 2.6 asks torch for this in an old way.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # The position is the optimiser step (ViewsDataModule), so the loader needs no state of its own.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
