"""Run ``simclr train KEY=VALUE ...``: train one run, or with -m a sweep of runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simclr_lightning.app import training
from simclr_lightning.app.config.flags import read_flags
from simclr_lightning.app.config.quoting import quote_paths
from simclr_lightning.app.launch.hydra_app import run_sweep, show
from simclr_lightning.app.launch.ranks import check_srun, is_external, run_external, run_ranks
from simclr_lightning.app.runs.locate import locate_checked, prepare
from simclr_lightning.app.runs.run import Run, folder_key, locked, reserve
from simclr_lightning.app.training.devices import device_count, processes_note
from simclr_lightning.cli.guard import guard
from simclr_lightning.overrides import flag
from simclr_lightning.run_folder import LOG, read_summary, write_summary
from simclr_lightning.stopping import check


def main(argv: Sequence[str]) -> int:
    """Run ``simclr train`` with these overrides; return the exit code, 0 for a finished run."""
    started = time.time()
    overrides = quote_paths(argv)
    folder: list[Path] = []
    return guard(
        lambda: _main(overrides, started, folder),
        debug=flag(overrides, "debug"),
        log=lambda: folder[0] / LOG if folder else None,
    )


def _main(overrides: list[str], started: float, folder: list[Path]) -> int:
    given = read_flags(overrides)
    if given.shows:
        return show(given.shows, given.overrides)
    overrides = given.overrides
    if given.multirun:
        return run_sweep(overrides)
    if not is_external():
        check_srun()
    run = locate_checked(overrides)
    if flag(overrides, "dry_run"):
        return training.print_dry_run(run)
    if not run.is_finished:
        training.check_images(run.cfg)
        training.check_encoders([run.cfg])
    check()
    if run.cfg.trainer.get("fast_dev_run") and not is_external():
        with tempfile.TemporaryDirectory(prefix="simclr_fast_dev_run_") as scratch:
            return _single(replace(run, folder=Path(scratch) / "run", checkpoint=None), started, folder)
    return (run_external if is_external() else _single)(run, started, folder)


def _single(run: Run, started: float, known: list[Path]) -> int:
    devices = device_count(run.cfg)
    if note := processes_note(run.cfg):
        print(note, flush=True)
    run = reserve(run)
    with locked(run.folder, folder_key(run)):
        known.append(run.folder)
        if not prepare(run):
            return 0
        if devices == 1:
            return training.run_process(
                run.folder, run.cfg, checkpoint=run.checkpoint, any_images=run.any_images, started=started
            )
        debug = flag(run.overrides, "debug")
        try:
            code = run_ranks(run.folder, devices, checkpoint=run.checkpoint, any_images=run.any_images, debug=debug)
            if code:
                training.record_stop(run.folder, run.cfg, code - 128)
            return code
        finally:
            if "status" not in read_summary(run.folder):  # killed ranks write no summary
                write_summary(run.folder, training.blank_summary(run.cfg))
