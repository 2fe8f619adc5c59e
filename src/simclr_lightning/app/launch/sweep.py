"""Run a sweep in its folder: plan the jobs, run several at a time, write sweep.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from simclr_lightning.app.config.grammar import SEARCH_PATH, grid, varied_keys
from simclr_lightning.app.errors import mistake
from simclr_lightning.app.launch.dashboard import Dashboard
from simclr_lightning.app.launch.jobs import Job, SweepStopped, plan, run_jobs
from simclr_lightning.app.runs.run import locked
from simclr_lightning.overrides import flag, key_of
from simclr_lightning.run_folder import OUTPUT, read_summary, write_manifest

OBJECTIVE: Final = "held_out_score"  # the score that a sweeper maximizes: never a score on test


@dataclass(frozen=True)
class Outcome:
    """The result of one job of a sweep.

    Attributes:
        job: the job.
        finished: whether the job's run is finished.
        score: the held-out score; None if the run has none.
        code: the exit code.
    """

    job: Job
    finished: bool
    score: float | None
    code: int

    @property
    def title(self) -> str:
        """Return the job, its exit code and the file of its output, for the list of failed jobs."""
        return f"{self.job.title}: exit code {self.code}, {self.job.folder / OUTPUT}"


class Sweep:
    """Plan and run the jobs of a sweep; all jobs of a grid are checked before Hydra's sweeper makes anything.

    Args:
        config: the configuration of the sweep.
        loader: Hydra's config loader.
        place: starts the jobs: a `Machine` or a `Cluster`.
        at_once: number of jobs at a time.
    """

    def __init__(self, config: DictConfig, loader: ConfigLoader, place: Any, *, at_once: int) -> None:
        _check_objective(config)
        self.config, self.place, self.at_once = config, place, at_once
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.grid = [] if _searches(config) else self._checked(grid(_overrides(config), loader), 0)

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Outcome]:
        """Run jobs and return their results.

        Args:
            job_overrides: the overrides of each job.
            first: the number of the first job.
        """
        jobs = self.grid[first : first + len(job_overrides)] or self._checked(job_overrides, first)
        with locked(self.folder, "hydra.sweep.dir"), Dashboard(jobs) as dashboard:
            write_manifest(
                self.folder, list(self.config.hydra.overrides.task), {job.folder.name: job.name for job in jobs}
            )
            waiting = [job for job in jobs if not job.finished]
            codes = run_jobs(waiting, self.place.start, at_once=self.at_once, watcher=dashboard)
        return [_outcome(job, codes.get(job.number, 0)) for job in jobs]

    def _checked(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        passed_on = [one for one in self.config.hydra.overrides.hydra if key_of(one) == SEARCH_PATH]
        varied = varied_keys(_overrides(self.config))
        jobs = plan(job_overrides, first=first, sweep=self.folder, passed_on=passed_on, varied=varied)
        self.place.check(jobs)
        print(f"{len(jobs)} jobs in {self.folder}", flush=True)
        if any(flag(job.overrides, "dry_run") for job in jobs):
            print("dry_run=true: all jobs are checked, and none is started")
            raise SweepStopped(0)
        return jobs


def _outcome(job: Job, code: int) -> Outcome:
    summary = read_summary(job.folder)
    return Outcome(job, code == 0 and summary.get("status") == "finished", summary.get(OBJECTIVE), code)


def _check_objective(config: DictConfig) -> None:
    """Refuse a sweeper that needs the scores of jobs if no job computes them."""
    if _searches(config) and not config.callbacks.online.every_n_epochs:
        raise mistake("the sweeper chooses by held-out scores: set callbacks.online.every_n_epochs to 1 or more")


def _searches(config: DictConfig) -> bool:
    """Return whether the sweeper chooses jobs by the scores of earlier ones."""
    return not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _overrides(config: DictConfig) -> list[str]:
    """Return the sweep's overrides: those of a file, then the command line's."""
    params = config.hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
