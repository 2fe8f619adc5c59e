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

from simclr_lightning import checkpoint as checkpoints, machine
from simclr_lightning.app.errors import UserError, describe, name_run
from simclr_lightning.app.training import finish, performance, preflight, stock
from simclr_lightning.app.training.build import Parts, build
from simclr_lightning.app.training.devices import accelerator, device_count
from simclr_lightning.app.training.messages import opening_notes, resume_command
from simclr_lightning.app.training.trainer import make_trainer, quiet_libraries, total_steps
from simclr_lightning.callbacks import LOG
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.global_batch import check_batch
from simclr_lightning.pair_loss import needs_labels
from simclr_lightning.run_folder import write_summary
from simclr_lightning.simclr import SimCLR
from simclr_lightning.stopping import PATIENCE, STOP, Stopped


def run_process(
    folder: Path,
    cfg: DictConfig,
    *,
    checkpoint: Path | None,
    any_images: bool = False,
    started: float | None = None,
    is_rank: bool = False,
) -> int:
    """Train and, on rank 0, finish the run; return the exit code.

    Args:
        folder: the run's folder, which this process or its parent has locked.
        cfg: the resolved configuration.
        checkpoint: the checkpoint to resume from; None: a new run.
        any_images: resume although the images differ from the checkpoint's.
        started: time in seconds since the epoch at which the program began; None: now.
        is_rank: whether a parent process passes signals on and writes the summary of a stopped run (`record_stop`).

    Raises:
        UserError, ValueError: the user can fix the cause; summary.json then has the status "failed".
    """
    quiet_libraries()
    machine.limit_threads()
    if performance.keeps_pages(cfg, accelerator(cfg)):
        machine.keep_pages()
    console = Console(highlight=False, soft_wrap=True)
    records_stop = not is_rank and _is_first_rank()
    # Launchers of ranks may send a second signal while rank 0 still saves.
    with STOP.listening(again="RANK" not in os.environ):
        STOP.last = (lambda signum: record_stop(folder, cfg, signum)) if records_stop else (lambda signum: None)
        try:
            STOP.check()
            parts = build(cfg)
            parts.data.any_images = any_images
            return _train(folder, cfg, parts, checkpoint, console, time.time() if started is None else started)
        except BaseException as error:
            signum = error.signum if isinstance(error, Stopped) else STOP.pending()
            if signum:  # an error after a signal is that of a rank or worker which has stopped
                STOP.wait_for_check(PATIENCE)
                STOP.do_last(signum)
                return 128 + signum
            if _is_first_rank():
                with contextlib.suppress(OSError, ValueError):  # a full disk must not hide the error
                    found = {"status": "failed", "reason": name_run(describe(error)[0], folder)}
                    write_summary(folder, {**finish.blank_summary(cfg), **found, **_saved_position(folder)})
            raise


def record_stop(folder: Path, cfg: DictConfig, signum: int) -> None:
    """Write summary.json of a stopped run, and print how to go on: resume, or start again before a first checkpoint."""
    saved: dict[str, int] = {}
    name = signal.Signals(signum).name
    with contextlib.suppress(OSError, ValueError):
        saved = _saved_position(folder)
        write_summary(folder, {**finish.blank_summary(cfg), "status": "stopped", **saved})
    if not saved:
        print(f"stopped by {name} before the first checkpoint: start again", flush=True)
    else:
        print(f"stopped by {name}; saved at step {saved['steps']}. Resume with:", flush=True)
        print(f"  {resume_command(folder, cfg)}", flush=True)


def _train(
    folder: Path,
    cfg: DictConfig,
    parts: Parts,
    checkpoint: Path | None,
    console: Console,
    started: float,
) -> int:
    devices = device_count(cfg)
    data = parts.data
    splits = data.load()
    STOP.check()
    check_batch(data.batch_size, images=splits.training_images, devices=devices * cfg.trainer.num_nodes)
    if needs_labels(parts.module.loss) and splits.train.labels is None:
        raise UserError(
            f"{cfg.loss._target_} needs labels, and these images have none: choose loss=nt_xent or loss=dcl"
        )
    total = total_steps(cfg, data.steps_per_epoch)
    first_step = int(checkpoints.load(checkpoint)["global_step"]) if checkpoint else 0
    _check_space(folder, parts.module, numbers=3 if cfg.ema is None else 4, resumed=checkpoint is not None)
    if _is_first_rank():
        _open_log(folder)
        for line in (*splits.notes, *opening_notes(cfg, parts, total, first_step)):
            console.print(line, style="dim", markup=False)
            LOG.info(line)
    trainer, progress = make_trainer(
        folder,
        cfg,
        total=total,
        steps_per_epoch=data.steps_per_epoch,
        console=console,
        first_step=first_step,
    )
    kind = accelerator(cfg)
    with performance.products(performance.uses_tf32(cfg, kind), kind):
        line = preflight.preflight_line(cfg, parts.module, data, trainer, devices=devices, steps=total - first_step)
    if line and _is_first_rank():
        console.print(line, style="dim", markup=False)
        LOG.info(line)
    STOP.check()
    if performance.compiles(cfg, kind, total - first_step):
        parts.module.compile_network()
    if first_step < total or not (folder / "checkpoints" / checkpoints.LAST).exists():
        with performance.products(performance.uses_tf32(cfg, kind), kind):
            trainer.fit(parts.module, datamodule=data, ckpt_path=checkpoint)
        if fast := cfg.trainer.get("fast_dev_run"):
            if trainer.is_global_zero:
                console.print(
                    f"trainer.fast_dev_run: {int(fast)} batch(es) trained; no scores, pictures or files are made"
                )
            return 0
        if not _is_whole(cfg, data, trainer.global_step):
            ended = f"training ended at step {trainer.global_step} of {total}"
            if not trainer.should_stop or trainer.global_step == 0:
                raise UserError(f"{ended}; this is not a finished run")
            if trainer.is_global_zero:
                console.print(line := f"{ended}: {stock.why_ended(trainer, cfg)[0]}", markup=False)
                LOG.info(line)
    if not trainer.is_global_zero:
        return 0
    finish.finish(folder, cfg, parts.module, data, parts.untrained, trainer, progress, console, started=started)
    return 0


def _is_whole(cfg: DictConfig, data: ViewsDataModule, step: int) -> bool:
    """Return whether the run is complete; epochs are counted by images, since a forced resume may change the batch."""
    epochs = data.samples_at(step) // (data.steps_per_epoch * data.batch_size)
    return epochs >= int(cfg.trainer.max_epochs) or 0 <= int(cfg.trainer.max_steps) <= step


def _check_space(folder: Path, module: SimCLR, *, numbers: int, resumed: bool) -> None:
    """Raise UserError if the disk has no room for three checkpoints of ``numbers`` copies of the weights."""
    needed = 3 * numbers * sum(p.numel() * p.element_size() for p in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free, and the run's checkpoints need {needed / 1e6:.0f} MB; free disk "
            "space" + ("" if resumed else ", or give another hydra.run.dir=DIR")
        )


def _saved_position(folder: Path) -> dict[str, int]:
    """Return ``steps`` and ``images_seen`` of the newest valid checkpoint; empty where there is none."""
    found = checkpoints.newest(folder)
    if found is None:
        return {}
    saved = checkpoints.load(found[0])
    return {"steps": int(saved["global_step"]), "images_seen": int(saved[ViewsDataModule.__qualname__]["samples_seen"])}


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _open_log(folder: Path) -> None:
    """Write the lines of the run to train.log, with their time."""
    handler = logging.FileHandler(folder / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.disabled = False  # a program that configured logging before may have disabled it
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    for old in LOG.handlers[:]:
        LOG.removeHandler(old)
        old.close()
    LOG.addHandler(handler)
