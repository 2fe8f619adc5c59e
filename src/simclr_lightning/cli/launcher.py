"""Hydra's launchers of a sweep: on this machine, and on SLURM. The jobs themselves are `sweep`'s."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher as HydraLauncher

from simclr_lightning.cli import sweep
from simclr_lightning.cli.config import flag
from simclr_lightning.cli.errors import UserError
from simclr_lightning.cli.quoting import quote_paths
from simclr_lightning.cli.targets import LAUNCHERS
from simclr_lightning.cli.words import parse

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

OBJECTIVE = "held_out_score"  # what a sweeper maximises: never a score on test
_MODULE = LAUNCHERS[0].rpartition(".")[0]  # Hydra instantiates plugins of the package hydra_plugins only

failed: list[str] = []  # titles of the failed jobs of this process's sweep


def register() -> None:
    """Make the launchers of conf/hydra/launcher known to Hydra; again is harmless.

    Hydra makes plugins of the package ``hydra_plugins`` only, and by name. Shipping a module there would make every
    Hydra program of the environment import torch at its start, so the module exists in this process alone.
    """
    if _MODULE in sys.modules:
        return
    parent, _, name = _MODULE.rpartition(".")
    if importlib.util.find_spec(parent) is None:
        sys.modules[parent] = ModuleType(parent)
        sys.modules[parent].__path__ = []
    own = ModuleType(_MODULE)
    sys.modules[_MODULE] = own
    setattr(importlib.import_module(parent), name, own)
    for launcher in (Launcher, SlurmLauncher):
        setattr(own, launcher.__name__, launcher)
        Plugins.instance().register(launcher)
    # The plugin's own defaults would be merged under conf/hydra/sweeper/optuna.yaml, which Hydra 1.3 refuses.
    ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {}).pop("optuna.yaml", None)


class Launcher(HydraLauncher):
    """Runs a sweep's jobs on this machine, each ``simclr train`` in a process tree of its own.

    Every job is composed and checked before the first starts. A job that is finished is not run again; one that is not
    goes on from its checkpoint. A job that fails does not stop the others.

    Args:
        jobs: how many side by side.
    """

    __module__ = _MODULE

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the sweep's configuration."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, then run them."""
        from simclr_lightning.cli.devices import cores, gpus
        from simclr_lightning.cli.machine import Machine

        machine = Machine(self.jobs, gpus=gpus() if self.jobs > 1 else (), cores=cores())
        return _launch(self.config, job_overrides, initial_job_idx, machine, at_once=self.jobs)


class SlurmLauncher(HydraLauncher):
    """Submits a sweep's jobs to SLURM through submitit, and waits for them; see conf/hydra/launcher/slurm.yaml.

    Args:
        jobs: how many are queued at a time.
        options: what `simclr_lightning.cli.slurm.Cluster` takes.
    """

    __module__ = _MODULE

    def __init__(self, jobs: int = 256, **options: Any) -> None:
        self.jobs, self.options = jobs, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the sweep's configuration."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, then submit them."""
        from simclr_lightning.cli.slurm import Cluster

        cluster = Cluster(Path(self.config.hydra.sweep.dir).absolute() / ".submitit", **self.options)
        return _launch(self.config, job_overrides, initial_job_idx, cluster, at_once=self.jobs)


def _launch(
    config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int, place: Any, *, at_once: int
) -> list[JobReturn]:
    from simclr_lightning import checkpoint
    from simclr_lightning.cli.board import Board
    from simclr_lightning.cli.folder import locked

    _check_objective(config)
    folder = Path(config.hydra.sweep.dir).absolute()
    passed_on = [word for word in config.hydra.overrides.hydra if _is_passed_on(word)]
    jobs = sweep.plan(job_overrides, first=first, sweep=folder, passed_on=passed_on, varied=_varied(config))
    place.check(jobs)
    print(f"{len(jobs)} jobs in {folder}", flush=True)
    if any(flag(job.words, "dry_run") for job in jobs):
        print("dry_run=true: all jobs are checked, and none is started")
        if _searches(config):  # which would wait for scores
            raise sweep.SweepStopped(0)
        return [JobReturn(overrides=job.words, status=JobStatus.COMPLETED) for job in jobs]
    with locked(folder), Board(jobs) as board:
        _write_manifest(folder, config, jobs)
        codes = sweep.run([job for job in jobs if not job.finished], place.start, at_once=at_once, watcher=board)
    return [_result(job, codes.get(job.number, 0), checkpoint.read_summary(job.folder)) for job in jobs]


def _check_objective(config: DictConfig) -> None:
    """Refuse a search for the best of scores that no job will have."""
    if _searches(config) and not config.callbacks.online.every_n_epochs:
        raise UserError(
            "the sweeper chooses by held-out scores: set callbacks.online.every_n_epochs to 1 or more", code=2
        )


def _searches(config: DictConfig) -> bool:
    """Whether the sweeper chooses jobs by the scores of those before."""
    return not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _result(job: sweep.Job, code: int, summary: dict[str, Any]) -> JobReturn:
    if code == 0 and summary.get("status") == "finished":
        return JobReturn(overrides=job.words, status=JobStatus.COMPLETED, _return_value=summary.get(OBJECTIVE))
    failed.append(f"{job.title}: exit code {code}, {job.folder / sweep.OUTPUT}")
    return JobReturn(overrides=job.words, status=JobStatus.FAILED, _return_value=UserError(f"job {job.title} failed"))


def _write_manifest(folder: Path, config: DictConfig, jobs: Sequence[sweep.Job]) -> None:
    """Say what the sweep's folders are; a sweeper that launches several times adds to it."""
    from simclr_lightning.files import write_text

    path = folder / sweep.MANIFEST
    known: Any = None
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):  # there is none, or it is damaged
        known = yaml.safe_load(path.read_text("utf-8"))
    before = known.get("jobs") if isinstance(known, dict) else None
    named = (before if isinstance(before, dict) else {}) | {job.folder.name: job.name for job in jobs}
    told = {"jobs": named, "words": list(config.hydra.overrides.task)}
    write_text(path, yaml.safe_dump(told, allow_unicode=True, sort_keys=False))


def _varied(config: DictConfig) -> frozenset[str]:
    """The keys that the sweeper gives several values."""
    params = config.hydra.sweeper.get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    last = {word.key: word for word in parse(quote_paths(words), sweep=True)}
    return frozenset(key for key, word in last.items() if word.parsed.is_sweep_override())


def _is_passed_on(word: str) -> bool:
    """Hydra's own words are the sweep's, not the jobs'."""
    return not word.lstrip("+~").startswith(("hydra.", "hydra/"))
