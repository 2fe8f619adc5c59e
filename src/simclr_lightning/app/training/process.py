"""Run one process of a run: build the objects, train, and on rank 0 score, draw, export and write summary.json."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import time
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from simclr_lightning import checkpoint as checkpoints
from simclr_lightning.app.errors import UserError, describe, name_run
from simclr_lightning.app.training import finish, performance, preflight
from simclr_lightning.app.training.build import Parts, build
from simclr_lightning.app.training.devices import accelerator, device_count
from simclr_lightning.app.training.messages import opening_notes, train_command
from simclr_lightning.app.training.signals import StopSignals
from simclr_lightning.app.training.trainer import make_trainer, quiet_libraries, total_steps
from simclr_lightning.callbacks import LOG, Stopped
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.global_batch import check_batch
from simclr_lightning.run_folder import typed, write_summary
from simclr_lightning.simclr import SimCLR


def run_process(
    folder: Path, cfg: DictConfig, *, checkpoint: Path | None, any_images: bool = False, started: float | None = None
) -> int:
    """Train and, on rank 0, finish the run; return the exit code.

    Args:
        folder: the run's folder, held by the caller's process or its parent.
        cfg: the resolved configuration.
        checkpoint: where to go on from.
        any_images: go on although the images differ from the checkpoint's.
        started: when the program began, for the wall time in the summary.

    Raises:
        UserError: and the library's ValueError, for what the user can fix; the summary then has the status "failed".
    """
    signals = StopSignals()
    signals.install()
    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    try:
        parts = build(cfg)
        parts.data.any_images = any_images
        return _train(folder, cfg, parts, checkpoint, signals, console, time.time() if started is None else started)
    except Stopped as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _stopped(folder, cfg, stop.signum, console)
        return 128 + stop.signum
    except BaseException as error:
        if _is_first_rank():
            with contextlib.suppress(OSError, ValueError):  # a full disk must not hide the error
                steps = _saved_step(folder)
                told = {"status": "failed", "steps": steps, "reason": name_run(describe(error)[0], folder)}
                write_summary(folder, {**finish.blank_summary(cfg), **told})
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
    _check_space(folder, parts.module, numbers=3 if cfg.ema is None else 4, resumed=checkpoint is not None)
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
    with performance.products(performance.uses_tf32(cfg, kind), kind):
        line = preflight.preflight_line(cfg, parts.module, data, trainer, devices=devices, steps=total - first_step)
    if line and _is_first_rank():
        console.print(line, style="dim", markup=False)
        LOG.info(line)
    if performance.compiles(cfg, kind, total - first_step):
        parts.module.compile_network()
    if first_step < total or not (folder / "checkpoints" / checkpoints.LAST).exists():
        with performance.products(performance.uses_tf32(cfg, kind), kind):
            trainer.fit(parts.module, datamodule=data, ckpt_path=checkpoint)
        if not _is_whole(cfg, data, trainer.global_step):
            raise UserError(f"training ended at step {trainer.global_step} of {total}; this is not a finished run")
    signals.training = False
    if not trainer.is_global_zero:
        return 0
    finish.finish(folder, cfg, parts.module, data, parts.untrained, trainer, progress, console, started=started)
    return 0


def _is_whole(cfg: DictConfig, data: ViewsDataModule, step: int) -> bool:
    """Whether the run is at its end: the epochs are counted by images, since a forced resume may change the batch."""
    epochs = data.samples_at(step) // (data.steps_per_epoch * data.batch_size)
    return epochs >= int(cfg.trainer.max_epochs) or 0 <= int(cfg.trainer.max_steps) <= step


def _check_space(folder: Path, module: SimCLR, *, numbers: int, resumed: bool) -> None:
    """Three checkpoints of weights, two moments and what else there is of each weight must fit."""
    needed = 3 * numbers * sum(p.numel() * p.element_size() for p in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, and the run's checkpoints need {needed / 1e6:.0f} MB; make room"
            + ("" if resumed else ", or give another hydra.run.dir=DIR")
        )


def _stopped(folder: Path, cfg: DictConfig, signum: int, console: Console) -> None:
    if not _is_first_rank():
        return
    steps = 0
    with contextlib.suppress(OSError, ValueError):
        steps = _saved_step(folder)
        write_summary(folder, {**finish.blank_summary(cfg), "status": "stopped", "steps": steps})
    name = signal.Signals(signum).name
    console.print(f"stopped by {name}; saved at step {steps}. Go on with:")
    console.print(f"  {train_command()} ckpt_path={typed(folder)}", soft_wrap=True, markup=False)


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
