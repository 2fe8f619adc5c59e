"""Find and check the run that a command line describes, and prepare its folder."""

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
    """Compose the configuration once and check all that can be known before any work; nothing is written.

    Returns:
        A new run, or the one that ``ckpt_path`` names with the overrides applied to its saved configuration.

    Raises:
        UserError: for the first mistake, a folder that holds a run already, or a resume that does not fit.
    """
    return _new(overrides) if value_of(overrides, "ckpt_path") is None else resume(overrides)


def prepare(run: Run) -> bool:
    """Clean and mark the run's folder; return False when there is nothing left to do."""
    checkpoint.sweep_debris(run.folder)
    for note in run.notes:
        print(note)
    if run.is_finished:
        summary = read_summary(run.folder)
        limits = " and ".join(reached_limits(run.cfg, epochs=summary["epochs"], steps=summary["steps"]))
        print(f"{shown(run.folder)} is finished: {summary['steps']} steps; to go on, raise {limits}")
        return False
    write_config(run)
    (run.folder / SUMMARY).unlink(missing_ok=True)  # an earlier part's; until the end there is none
    return True


def _new(overrides: Sequence[str]) -> Run:
    full = compose(overrides)
    check_run(full)
    if full.ckpt_path is not None:
        raise mistake("ckpt_path is read from the command line alone: ckpt_path=DIR")
    folder = Path(full.hydra.run.dir)
    if is_given(overrides, "hydra.run.dir") and holds_a_run(folder):
        raise UserError(
            f"{folder} already holds a run; give another hydra.run.dir=DIR, or go on with it: ckpt_path={typed(folder)}"
        )
    return Run(folder.absolute(), without_start_keys(full), tuple(overrides), full.hydra)
