"""Plan and check all jobs of a sweep, then run several at a time, each as a separate process tree."""

from __future__ import annotations

import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omegaconf import DictConfig

from simclr_lightning import checkpoint
from simclr_lightning.app.config.plain import diff, to_plain
from simclr_lightning.app.config.quoting import as_value
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.overrides import key_of
from simclr_lightning.run_folder import read_saved_config, read_summary
from simclr_lightning.stopping import STOP

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_STOP = 60  # after which a job that was asked to stop is killed
NAME_AT_MOST = 120  # letters of a job's overrides in its folder's name


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: the position in the sweep, from 0.
        overrides: the overrides of the job's command line, without the key of its folder.
        name: the overrides that differ from the sweep's other jobs.
        folder: the folder of the job's run.
        cfg: the resolved configuration.
        finished: whether an earlier start of the sweep has finished the job with this configuration.
    """

    number: int
    overrides: tuple[str, ...]
    name: str
    folder: Path
    cfg: DictConfig
    finished: bool

    @property
    def title(self) -> str:
        """Return the number and the overrides, by which messages name the job."""
        return f"[{self.number}] {self.name or ' '.join(self.overrides)}"


class Running(Protocol):
    """A job that was started."""

    def poll(self) -> int | None:
        """Return the job's exit code; None while it runs."""

    def stop(self, signum: int) -> None:
        """Ask the job to save and end."""

    def kill(self) -> None:
        """Kill the job's remaining processes."""


class Watcher(Protocol):
    """Show the jobs to the user."""

    def started(self, job: Job) -> None:
        """Show that a job starts."""

    def ended(self, job: Job, code: int) -> None:
        """Show that a job has ended."""

    def look(self) -> None:
        """Update the state of the running jobs."""


class SweepStopped(Exception):
    """A signal stopped the sweep, and all its jobs have ended; code 0: ``dry_run=true``, no job was started."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped, exit code {code}")
        self.code = code


def plan(
    job_overrides: Sequence[Sequence[str]],
    *,
    first: int,
    sweep: Path,
    passed_on: Sequence[str],
    varied: Collection[str],
) -> list[Job]:
    """Compose and check every job, before any of them starts.

    Args:
        job_overrides: the overrides of each job.
        first: the number of the first one.
        sweep: the sweep's folder.
        passed_on: further overrides of every job.
        varied: the keys whose values differ between jobs.

    Raises:
        UserError: for the first mistake, also when a job's folder holds a run of another configuration.
    """
    jobs = []
    for number, overrides in enumerate(job_overrides, start=first):
        own = ",".join(override for override in overrides if key_of(override) in varied)
        name = re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", own)[:NAME_AT_MOST]
        jobs.append(_job(number, (*overrides, *passed_on), own, sweep / f"{number}_{name}".rstrip("_")))
    return jobs


def command(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the command line of a job, which starts a run in the folder, or resumes the run that is there."""
    return [sys.executable, "-m", "simclr_lightning.cli", "train", *overrides, _where(folder)]


def run_jobs(
    jobs: Sequence[Job],
    start: Callable[[Job], Running | None],
    *,
    at_once: int,
    watcher: Watcher,
    seconds: float = SECONDS_BETWEEN_LOOKS,
) -> dict[int, int]:
    """Run several jobs at a time, even if some fail, and return their exit codes by number.

    Each SIGINT and SIGTERM is passed on to all running jobs; no other job starts then.

    Args:
        jobs: the jobs, in their order.
        start: starts a job; returns None while there are no free devices.
        at_once: how many run at a time.
        watcher: its methods are called at every start and end.
        seconds: between two updates of the running jobs.

    Raises:
        SweepStopped: after a signal, when all jobs have ended.
    """
    codes: dict[int, int] = {}
    waiting, running = deque(jobs), dict[int, tuple[Job, Running]]()
    with STOP.listening(patience=math.inf, again=False):
        seen, deadline = 0, 0.0
        try:
            while running or (waiting and not STOP.received):
                while waiting and not STOP.received and len(running) < at_once:
                    started = start(waiting[0])
                    if started is None:
                        break
                    job = waiting.popleft()
                    running[job.number] = job, started
                    watcher.started(job)
                for job, process in list(running.values()):
                    code = process.poll()
                    if code is not None:
                        codes[job.number] = code
                        del running[job.number]
                        process.kill()
                        watcher.ended(job, code)
                for signum in STOP.received[seen:]:
                    seen, deadline = seen + 1, deadline or time.monotonic() + SECONDS_TO_STOP
                    for _, process in running.values():
                        process.stop(signum)
                if STOP.received and time.monotonic() > deadline:
                    break
                watcher.look()
                time.sleep(seconds)
        finally:
            for _, process in running.values():
                process.kill()
        if STOP.received:
            raise SweepStopped(128 + STOP.received[0])
    return codes


def _job(number: int, overrides: tuple[str, ...], name: str, folder: Path) -> Job:
    if not checkpoint.newest(folder) and read_summary(folder).get("status") == "finished":
        cfg = locate_checked(overrides).cfg  # the checkpoints were deleted; the scores are there
        if not diff(read_saved_config(folder), to_plain(cfg)):
            return Job(number, overrides, name, folder, cfg, finished=True)
    run = locate_checked((*overrides, _where(folder)))
    return Job(number, overrides, name, folder, run.cfg, run.is_finished)


def _where(folder: Path) -> str:
    key = "ckpt_path" if checkpoint.newest(folder) else "hydra.run.dir"
    return f"{key}={as_value(str(folder))}"
