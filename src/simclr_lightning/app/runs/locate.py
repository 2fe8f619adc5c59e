"""Find and check the run that the overrides of a command line describe, and prepare its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simclr_lightning import checkpoint
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.grammar import value_of
from simclr_lightning.app.config.validate import check_run
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.app.runs.resume import resume, without_start_keys
from simclr_lightning.app.runs.run import Run, holds_a_run, reached_limits, write_config
from simclr_lightning.overrides import is_given
from simclr_lightning.run_folder import SUMMARY, read_summary, shown, typed


def locate_checked(overrides: Sequence[str]) -> Run:
    """Compose and check the configuration, once per process and before any work; write nothing.

    Returns:
        A new run; or with ``ckpt_path`` an older run, with the overrides applied to its saved configuration.

    Raises:
        UserError: a key is wrong, the folder already contains a run, or the resumed run has another configuration.
    """
    return _new(overrides) if value_of(overrides, "ckpt_path") is None else resume(overrides)


def prepare(run: Run) -> bool:
    """Remove temporary files from the run's folder and write its configuration; return False if the run is finished."""
    checkpoint.sweep_debris(run.folder)
    for note in run.notes:
        print(note)
    if run.is_finished:
        summary = read_summary(run.folder)
        limits = " and ".join(reached_limits(run.cfg, epochs=summary["epochs"], steps=summary["steps"]))
        limits = limits or f"the limit of the callback that ended it ({summary.get('ended_by')})"
        print(f"{shown(run.folder)} is finished: {summary['steps']} steps; to train longer, raise {limits}")
        return False
    write_config(run)
    (run.folder / SUMMARY).unlink(missing_ok=True)  # of an earlier process; a new one is written at the end
    return True


def _new(overrides: Sequence[str]) -> Run:
    full = compose(overrides)
    check_run(full)
    if full.ckpt_path is not None:
        raise mistake("ckpt_path can be set only on the command line, not in a file: ckpt_path=DIR")
    if full.hydra.mode is not None and full.hydra.mode.name != "RUN":
        raise mistake(f"hydra.mode={full.hydra.mode.name}: for a sweep, type -m")
    folder = Path(full.hydra.run.dir)
    if is_given(overrides, "hydra.run.dir") and holds_a_run(folder):
        raise UserError(
            f"{folder} already contains a run; give another hydra.run.dir=DIR, or resume that run: "
            f"ckpt_path={typed(folder)}"
        )
    return Run(folder.absolute(), without_start_keys(full), tuple(overrides), full.hydra)
