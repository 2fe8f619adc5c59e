"""Run Hydra's program with this project's launchers of a sweep: on this machine, and on SLURM."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from simclr_lightning import machine
from simclr_lightning.app import errors
from simclr_lightning.app.config.composition import (
    check_shown,
    conf_folder,
    of_a_sweep,
    register_resolvers,
    set_sweep_overrides,
)
from simclr_lightning.app.config.grammar import parse
from simclr_lightning.app.config.open_nodes import opened
from simclr_lightning.app.config.targets import LAUNCHERS
from simclr_lightning.app.launch.jobs import SweepStopped
from simclr_lightning.app.launch.local import Machine, gpus
from simclr_lightning.app.launch.ranks import is_external
from simclr_lightning.app.launch.slurm import Cluster
from simclr_lightning.app.launch.sweep import Outcome, Sweep
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.extras import require
from simclr_lightning.overrides import without
from simclr_lightning.text import first_line

failed: list[str] = []  # the failed jobs of this process's sweep
_MODULE = LAUNCHERS[0].rpartition(".")[0]  # Hydra instantiates plugins of the package hydra_plugins only


def register() -> None:
    """Register the launchers of conf/hydra/launcher with Hydra; a second call changes nothing.

    Hydra instantiates only classes of the package ``hydra_plugins``. A file in that package would be imported by every
    Hydra program in the environment, and would import torch, so the module exists in this process alone.
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


class Launcher(HydraLauncher):
    """Run the jobs of a sweep on this machine, each as a separate process tree of ``simclr train``.

    Every job is composed and checked before the first starts. A finished job is not run again; an unfinished one
    resumes from its checkpoint. A job that fails does not stop the others.

    Args:
        jobs: number of jobs at a time.
    """

    __module__ = _MODULE

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the jobs of a grid."""
        here = Machine(self.jobs, gpus=gpus() if self.jobs > 1 else (), cores=machine.cores())
        self.sweep = Sweep(config, hydra_context.config_loader, here, at_once=self.jobs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run checked jobs and return their results."""
        return [_result(outcome) for outcome in self.sweep.launch(job_overrides, initial_job_idx)]


class SlurmLauncher(HydraLauncher):
    """Submit the jobs of a sweep to SLURM through submitit, and wait for them; see conf/hydra/launcher/slurm.yaml.

    Args:
        jobs: number of jobs in the queue at a time.
        options: the other arguments of `simclr_lightning.app.launch.slurm.Cluster`.
    """

    __module__ = _MODULE

    def __init__(self, jobs: int = 256, **options: Any) -> None:
        self.jobs, self.options = jobs, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the jobs of a grid."""
        cluster = Cluster(Path(config.hydra.sweep.dir).absolute() / ".submitit", **self.options)
        self.sweep = Sweep(config, hydra_context.config_loader, cluster, at_once=self.jobs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit checked jobs and return their results."""
        return [_result(outcome) for outcome in self.sweep.launch(job_overrides, initial_job_idx)]


class _Failed(JobReturn):
    """The result of a failed job; unlike Hydra's class, it prints nothing: the dashboard has printed the reason."""

    @property  # type: ignore[misc]  # __init__ sets it, and nothing else
    def return_value(self) -> Any:
        raise self._return_value


def run_sweep(overrides: list[str]) -> int:
    """Run a sweep and return its exit code.

    Args:
        overrides: the overrides of the command line.

    Raises:
        UserError: the message names the first mistake; nothing has been written then.
    """
    if is_external():
        raise errors.UserError(
            "-m starts processes itself and cannot run under torchrun or srun; leave one of them out"
        )
    if "hydra/sweeper=optuna" in overrides:
        require("optuna", "hydra/sweeper=optuna")
    set_sweep_overrides(without(overrides, "debug"))
    expanded, first = of_a_sweep(overrides)
    locate_checked(first)  # before Hydra makes anything that the overrides name
    failed.clear()
    try:
        _run_hydra(["--multirun", *expanded])
    except SweepStopped as stop:
        if stop.code:
            print("stopped; the same command goes on with what is not finished", file=sys.stderr)
        return stop.code
    except Exception as error:  # each sweeper raises another type for a failed job; failed jobs are printed below
        if not failed:
            cause = errors.unwrapped(error)
            if errors.explain(cause) is not None:
                raise
            raise _of_the_sweeper(cause) from error
    if failed:
        print(f"\n{len(failed)} job(s) failed; the same command runs them again:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in failed), file=sys.stderr)
        return 1
    return 0


def _of_the_sweeper(error: BaseException) -> errors.UserError:
    """Return a message for an error of a sweeper, which does not name the key."""
    reason = f"{type(error).__name__}: {first_line(error)}".removesuffix(f": {type(error).__name__}")
    return errors.mistake(
        f"the sweep cannot be made ({reason})\n"
        "look at hydra.sweeper.*, hydra.launcher.* and the overrides with several values; the traceback: add debug=true"
    )


def _result(outcome: Outcome) -> JobReturn:
    overrides = outcome.job.overrides
    if outcome.finished:
        return JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=outcome.score)
    failed.append(outcome.title)
    error = errors.UserError(f"job {outcome.job.title} failed")
    return _Failed(overrides=overrides, status=JobStatus.FAILED, _return_value=error)


def show(flags: Sequence[str], overrides: Sequence[str]) -> int:
    """Let Hydra answer the flags that it handles itself, such as ``--cfg job``.

    Raises:
        UserError: the configuration cannot be composed, or names what it may not.
    """
    if "--hydra-help" in flags:  # which is about Hydra alone
        overrides = ()
    if "--shell-completion" not in flags:  # whose arguments are no overrides
        check_shown(overrides)
    _run_hydra([*flags, *overrides])
    return 0


def _run_hydra(arguments: list[str]) -> None:
    """Run Hydra's own program, for its flags and the sweepers."""
    register_resolvers()
    register()
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [sys.argv[0], *map(_opened, arguments)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out as exceptions, which `guard` turns into messages
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="train")(_never)()
    finally:
        sys.argv = before[0]
        os.environ.pop("HYDRA_FULL_ERROR")
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]


def _opened(override: str) -> str:
    """Return an override as Hydra needs it; one with several values is not composed by Hydra, and names the jobs."""
    if opened(override) == override or any(one.parsed.is_sweep_override() for one in parse([override], sweep=True)):
        return override
    return opened(override)


def _never(cfg: Any) -> None:
    raise AssertionError("the launcher starts jobs as processes")
