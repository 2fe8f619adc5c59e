"""Process trees: the ranks of a run on several devices (torch's elastic launcher), and the jobs of a sweep."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher as HydraLauncher

from simclr_lightning.cli.config import flag
from simclr_lightning.cli.errors import UserError
from simclr_lightning.cli.quoting import quoted
from simclr_lightning.cli.targets import LAUNCHER

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

SECONDS_TO_STOP = 20  # after which a rank that does not answer is killed
OBJECTIVE = "held_out_score"  # what a sweeper maximises: never a score on test
_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Make ``hydra/launcher: simclr`` known to Hydra.

    Hydra makes plugins of the package ``hydra_plugins`` only, and by name. Shipping a module there would make every
    Hydra program of the environment import torch at its start, so the module exists in this process alone.
    """
    if Launcher.__module__ in sys.modules:
        return
    parent, _, name = Launcher.__module__.rpartition(".")
    if importlib.util.find_spec(parent) is None:
        sys.modules[parent] = ModuleType(parent)
        sys.modules[parent].__path__ = []
    own = ModuleType(Launcher.__module__)
    own.Launcher = Launcher  # type: ignore[attr-defined]
    sys.modules[Launcher.__module__] = own
    setattr(importlib.import_module(parent), name, own)
    Plugins.instance().register(Launcher)
    ConfigStore.instance().store(
        group="hydra/launcher",
        name="simclr",
        node={"_target_": LAUNCHER},
        provider="simclr_lightning",
    )


# -- ranks ------------------------------------------------------------------------------------------------------------


def run_ranks(folder: Path, devices: int, *, checkpoint: Path | None, force: bool, debug: bool) -> int:
    """Start one process a device, wait for all of them and return the run's exit code.

    The ranks are killed together: when one dies, the others are gone within `SECONDS_TO_STOP` seconds and the dead one
    is named. A signal to this process is passed on to them.

    Args:
        folder: the run's folder, with .hydra/config.yaml written.
        devices: processes to start.
        checkpoint: where to go on from.
        force: go on although the images differ.
        debug: ranks print their tracebacks.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    reports = folder / ".ranks"
    reports.mkdir(exist_ok=True)
    for old in reports.glob("*.json"):
        old.unlink()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    words = [str(folder), str(checkpoint or ""), *(["force"] if force else []), *(["debug"] if debug else [])]
    with tempfile.TemporaryDirectory(prefix="simclr_ranks_") as logs:
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            local_addr="localhost",
            shutdown_timeout=SECONDS_TO_STOP,
        )
        try:
            launch_agent(launch, sys.executable, ["-m", "simclr_lightning.cli", "rank", *words])
        except SignalException as stop:
            return 128 + int(stop.sigval)
        except ChildFailedError as error:
            return _explain(reports, {rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


def rank_main(words: Sequence[str]) -> int:
    """Entry of one rank: ``rank FOLDER CHECKPOINT [force] [debug]``, started by `run_ranks`."""
    die_with_parent()
    folder, checkpoint = Path(words[0]), Path(words[1]) if words[1] else None
    from simclr_lightning.cli import errors
    from simclr_lightning.cli.folder import read_config
    from simclr_lightning.cli.job import run_job

    rank = int(os.environ["RANK"])
    report = folder / ".ranks" / f"{rank}.json"
    try:
        return run_job(folder, read_config(folder), checkpoint=checkpoint, force="force" in words[2:])
    except Exception as error:
        # Only the parent speaks: it knows which rank was first.
        message, code = errors.describe(error, log=folder / "train.log")
        report.write_text(json.dumps({"message": message, "code": code, "lost": _is_lost_peer(error)}))
        if "debug" in words[2:]:
            raise
        return code
    finally:
        import torch.distributed

        if torch.distributed.is_initialized():
            with contextlib.suppress(Exception):
                torch.distributed.destroy_process_group()


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that a killed parent leaves no process behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _explain(reports: Path, codes: dict[int, int]) -> int:
    """Name what went wrong first: a killed rank before the ranks that only lost it."""
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code not in (signal.SIGTERM, signal.SIGINT)}
    if killed:
        rank, signum = min(killed.items())
        hint = "; the machine may be out of memory: lower data.batch_size" if signum == signal.SIGKILL else ""
        raise UserError(
            f"rank {rank} was killed by {signal.Signals(signum).name}{hint}. "
            "All ranks were stopped; go on from the last checkpoint with ckpt_path=last"
        )
    stops = {code for code in codes.values() if code in (128 + signal.SIGTERM, 128 + signal.SIGINT)}
    if stops and len(stops) == len(set(codes.values())):
        return stops.pop()
    told = {int(path.stem): json.loads(path.read_text()) for path in sorted(reports.glob("*.json"))}
    own = {rank: entry for rank, entry in told.items() if not entry["lost"]} or told
    if not own:
        rank, code = min(codes.items())
        raise UserError(f"rank {rank} ended with exit code {code} and said nothing; run again with debug=true")
    rank, entry = min(own.items())
    raise UserError(f"rank {rank}: {entry['message']}", code=entry["code"])


def _is_lost_peer(error: BaseException) -> bool:
    """Whether the error only says that another rank is gone."""
    return bool(re.search(r"gloo|nccl|connection (reset|closed)|socket|store", str(error), re.IGNORECASE))


# -- sweeps -----------------------------------------------------------------------------------------------------------


class Launcher(HydraLauncher):
    """Runs a sweep's jobs one after the other, each ``simclr train`` in a process tree of its own.

    Every job is composed and checked before the first starts. A job that is finished is not run again; one that is not
    goes on from its checkpoint. A job that fails does not stop the others.
    """

    __module__ = LAUNCHER.rpartition(".")[0]  # Hydra instantiates plugins of this package only
    failed: tuple[str, ...] = ()  # overrides of the failed jobs of this process's sweep

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the sweep's configuration."""
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, then run them in order."""
        from simclr_lightning.cli.train import check

        sweep = Path(self.config.hydra.sweep.dir).absolute()
        passed_on = [word for word in self.config.hydra.overrides.hydra if _is_passed_on(word)]
        jobs = [[*words, *passed_on] for words in job_overrides]
        for words in jobs:
            check(words)
        print(f"{len(jobs)} jobs in {sweep}", flush=True)
        if any(flag(words, "dry_run") for words in jobs):
            print("dry_run=true: all jobs are checked, and none is started")
            return [JobReturn(overrides=words, status=JobStatus.COMPLETED) for words in jobs]
        names = [f"{initial_job_idx + place}_{name}" for place, name in enumerate(_own_words(job_overrides))]
        return [
            self._run(initial_job_idx + place, words, folder=sweep / name.rstrip("_"))
            for place, (words, name) in enumerate(zip(jobs, names, strict=True))
        ]

    def _run(self, number: int, words: Sequence[str], *, folder: Path) -> JobReturn:
        from simclr_lightning import checkpoint

        title = f"[{number}] {' '.join(words)}"
        if checkpoint.read_summary(folder).get("status") == "finished":
            print(f"{title}: finished before", flush=True)
            return _result(words, checkpoint.read_summary(folder))
        print(title, flush=True)
        code = _run_process(words, folder)
        summary = checkpoint.read_summary(folder)
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise SweepStopped(code)
        if code or summary.get("status") != "finished":
            Launcher.failed = (*Launcher.failed, f"{title}: exit code {code}")
            status = JobStatus.FAILED
            return JobReturn(overrides=words, status=status, _return_value=UserError(f"job {title} failed"))
        return _result(words, summary)


class SweepStopped(Exception):
    """A job was stopped by a signal, and the sweep with it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped, exit code {code}")
        self.code = code


def _run_process(words: Sequence[str], folder: Path) -> int:
    """One job in a session of its own; signals to the sweep are passed on, and nothing of it is left behind."""
    from simclr_lightning import checkpoint

    key = "ckpt_path" if checkpoint.newest(folder) else "hydra.run.dir"
    where = [f"{key}={quoted(str(folder))}"]
    command = [sys.executable, "-m", "simclr_lightning.cli", "train", *words, *where]
    job = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)

    def pass_on(signum: int, frame: Any) -> None:
        job.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = job.wait()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(job.pid, signal.SIGKILL)  # loader workers of a job that crashed; its ranks die with it
    return code if code >= 0 else 128 - code


def _result(words: Sequence[str], summary: dict[str, Any]) -> JobReturn:
    return JobReturn(overrides=words, status=JobStatus.COMPLETED, _return_value=summary.get(OBJECTIVE))


def _is_passed_on(word: str) -> bool:
    """Hydra's own words are the sweep's, not the jobs'."""
    return not word.lstrip("+~").startswith(("hydra.", "hydra/"))


def _own_words(jobs: Sequence[Sequence[str]]) -> list[str]:
    """For each job the words that tell it from the others, safe as a file name."""
    told = [[word for word in job if sum(word in other for other in jobs) < len(jobs)] for job in jobs]
    return [re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", ",".join(words))[:120] for words in told]
