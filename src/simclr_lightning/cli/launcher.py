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
from simclr_lightning.cli.errors import UserError, mistake
from simclr_lightning.cli.quoting import quote_paths
from simclr_lightning.cli.targets import LAUNCHERS
from simclr_lightning.cli.words import parse

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
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
    sweepers = ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {})
    sweepers.pop("optuna.yaml", None)
    for sampler in sweepers.get("sampler", {}).values():
        if "seed" in sampler.node:  # the same command makes the same choices
            sampler.node.seed = 0


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
        """Check the jobs of a grid."""
        from simclr_lightning.cli.devices import cores, gpus
        from simclr_lightning.cli.machine import Machine

        machine = Machine(self.jobs, gpus=gpus() if self.jobs > 1 else (), cores=cores())
        self.sweep = _Sweep(config, hydra_context.config_loader, machine, at_once=self.jobs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs that are checked."""
        return self.sweep.launch(job_overrides, initial_job_idx)


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
        """Check the jobs of a grid."""
        from simclr_lightning.cli.slurm import Cluster

        cluster = Cluster(Path(config.hydra.sweep.dir).absolute() / ".submitit", **self.options)
        self.sweep = _Sweep(config, hydra_context.config_loader, cluster, at_once=self.jobs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit jobs that are checked."""
        return self.sweep.launch(job_overrides, initial_job_idx)


class _Sweep:
    """A sweep in its folder. All jobs of a grid are checked at once, before its sweeper makes anything.

    Args:
        config: the sweep's configuration.
        loader: Hydra's.
        place: where jobs are started.
        at_once: how many at a time.
    """

    def __init__(self, config: DictConfig, loader: ConfigLoader, place: Any, *, at_once: int) -> None:
        _check_objective(config)
        self.config, self.place, self.at_once = config, place, at_once
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.grid = [] if _searches(config) else self._checked(_grid(config, loader), 0)

    def launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run jobs, the first of which has this number."""
        from simclr_lightning import checkpoint
        from simclr_lightning.cli.board import Board
        from simclr_lightning.cli.folder import locked

        jobs = self.grid[first : first + len(job_overrides)] or self._checked(job_overrides, first)
        with locked(self.folder, "hydra.sweep.dir"), Board(jobs) as board:
            _write_manifest(self.folder, self.config, jobs)
            waiting = [job for job in jobs if not job.finished]
            codes = sweep.run(waiting, self.place.start, at_once=self.at_once, watcher=board)
        return [_result(job, codes.get(job.number, 0), checkpoint.read_summary(job.folder)) for job in jobs]

    def _checked(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[sweep.Job]:
        passed_on = [word for word in self.config.hydra.overrides.hydra if _is_passed_on(word)]
        varied = _varied(self.config)
        jobs = sweep.plan(job_overrides, first=first, sweep=self.folder, passed_on=passed_on, varied=varied)
        self.place.check(jobs)
        print(f"{len(jobs)} jobs in {self.folder}", flush=True)
        if any(flag(job.words, "dry_run") for job in jobs):
            print("dry_run=true: all jobs are checked, and none is started")
            raise sweep.SweepStopped(0)
        return jobs


class _Failed(JobReturn):
    """A job without a result; Hydra's own says so on stderr, where the board has said more."""

    @property  # type: ignore[misc]  # it is set by __init__ alone
    def return_value(self) -> Any:
        raise self._return_value


def _check_objective(config: DictConfig) -> None:
    """Refuse a search for the best of scores that no job will have."""
    if _searches(config) and not config.callbacks.online.every_n_epochs:
        raise mistake("the sweeper chooses by held-out scores: set callbacks.online.every_n_epochs to 1 or more")


def _searches(config: DictConfig) -> bool:
    """Whether the sweeper chooses jobs by the scores of those before."""
    return not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _result(job: sweep.Job, code: int, summary: dict[str, Any]) -> JobReturn:
    if code == 0 and summary.get("status") == "finished":
        return JobReturn(overrides=job.words, status=JobStatus.COMPLETED, _return_value=summary.get(OBJECTIVE))
    failed.append(f"{job.title}: exit code {code}, {job.folder / sweep.OUTPUT}")
    return _Failed(overrides=job.words, status=JobStatus.FAILED, _return_value=UserError(f"job {job.title} failed"))


def _write_manifest(folder: Path, config: DictConfig, jobs: Sequence[sweep.Job]) -> None:
    """Say what the sweep's folders are; a sweeper that launches several times adds to it."""
    from simclr_lightning.files import write_text

    path = folder / sweep.MANIFEST
    known: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError):  # there is none, or it is damaged
        known = yaml.safe_load(path.read_text("utf-8"))
    before = known.get("jobs") if isinstance(known, dict) else None
    named = (before if isinstance(before, dict) else {}) | {job.folder.name: job.name for job in jobs}
    told = {"jobs": named, "words": list(config.hydra.overrides.task)}
    write_text(path, yaml.safe_dump(told, allow_unicode=True, sort_keys=False))


def _grid(config: DictConfig, loader: ConfigLoader) -> list[list[str]]:
    """The words of every job of Hydra's own sweeper, in its order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    words = parse(_words(config), sweep=True, loader=loader)
    for word in words:
        if word.parsed.is_interval_sweep():
            raise mistake(f"{word.text}: an interval is not a grid; list the values, or add hydra/sweeper=optuna")
    return BasicSweeper.split_arguments([word.parsed for word in words], None)[0]


def _words(config: DictConfig) -> list[str]:
    """The sweep's words: those of a file, then the command line's."""
    params = config.hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]


def _varied(config: DictConfig) -> frozenset[str]:
    """The keys that the sweeper gives several values."""
    last = {word.key: word for word in parse(quote_paths(_words(config)), sweep=True)}
    return frozenset(key for key, word in last.items() if word.parsed.is_sweep_override())


def _is_passed_on(word: str) -> bool:
    """Hydra's own words are the sweep's, not the jobs'."""
    return not word.lstrip("+~").startswith(("hydra.", "hydra/"))
