"""Run the jobs of a sweep on SLURM, through submitit: each submission is the command line of one run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.app.launch.jobs import Job, command
from simclr_lightning.app.launch.ranks import die_with_parent
from simclr_lightning.extras import require
from simclr_lightning.run_folder import OUTPUT

SECONDS_TO_SAVE = 60  # after which a run that was asked to stop is killed
SECONDS_TO_BE_ENDED = 600  # SLURM asked the run to stop, and is about to end the job
_SIGNALLED: Final = (128 + signal.SIGTERM, 128 + signal.SIGINT)
_LOST: Final = 1  # exit code of a job that SLURM ended without a result


class Cluster:
    """Start jobs through submitit.

    Args:
        folder: the folder of submitit's files; every node must see it.
        cluster: "slurm", or "local": the same steps on this machine.
        minutes: the time limit of a job.
        requeue: how many times a job that reaches its time limit goes back into the queue and resumes.
        seconds_to_save: seconds before the time limit at which SLURM warns a job.
        cpus: cores per node; None: the loader's workers and two more for every device.
        memory_gb: memory per node; None: the cluster's default.
        setup: shell lines that SLURM runs before a job.
        options: further options of sbatch.
        named: options of sbatch that have a key in conf/hydra/launcher/slurm.yaml; None: not given to sbatch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cluster: str = "slurm",
        minutes: int = 1440,
        requeue: int = 10,
        seconds_to_save: int = 120,
        cpus: int | None = None,
        memory_gb: int | None = None,
        setup: Sequence[str] = (),
        options: dict[str, Any] | None = None,
        **named: Any,
    ) -> None:
        self.folder, self.cluster, self.minutes, self.requeue = folder, cluster, minutes, requeue
        self.seconds_to_save, self.cpus, self.memory_gb, self.setup = seconds_to_save, cpus, memory_gb, list(setup)
        self.options = {**(options or {}), **{key: value for key, value in named.items() if value is not None}}

    def check(self, jobs: Sequence[Job]) -> None:
        """Check that the jobs can be submitted.

        Raises:
            UserError: submitit or SLURM is missing, or ``trainer.devices`` of a job is not a number.
        """
        require("submitit", "hydra/launcher=slurm", "slurm")
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("hydra/launcher=slurm: there is no sbatch here; start the sweep where jobs are submitted")
        for job in jobs:
            if not isinstance(job.cfg.trainer.devices, int) or job.cfg.trainer.devices < 1:
                raise mistake(f"trainer.devices={job.cfg.trainer.devices}: on SLURM this must be a number of devices")

    def start(self, job: Job) -> Submitted:
        """Submit a job."""
        import submitit

        executor = submitit.AutoExecutor(
            self.folder / job.folder.name, cluster=self.cluster, slurm_max_num_timeout=self.requeue
        )
        executor.update_parameters(**self.parameters(job))
        trainer = job.cfg.trainer
        return Submitted(
            executor.submit(Command(job.overrides, job.folder, int(trainer.devices), int(trainer.num_nodes)))
        )

    def parameters(self, job: Job) -> dict[str, Any]:
        """Return submitit's parameters of a job: nodes, devices, cores and time, by its configuration."""
        trainer = job.cfg.trainer
        workers = int(job.cfg.data.get("num_workers") or 0)
        found = {
            "name": f"simclr-{job.number}",
            "nodes": int(trainer.num_nodes),
            "tasks_per_node": 1,  # the ranks of a node are started by the run itself
            "gpus_per_node": 0 if trainer.accelerator == "cpu" else int(trainer.devices),
            "cpus_per_task": self.cpus or int(trainer.devices) * (2 + workers),
            "timeout_min": self.minutes,
            "mem_gb": self.memory_gb,
            "slurm_signal_delay_s": self.seconds_to_save,
            "slurm_setup": self.setup or None,
            "slurm_additional_parameters": {"requeue": True, **self.options},
        }
        return {key: value for key, value in found.items() if value is not None}


class Submitted:
    """One submitted job.

    Args:
        job: submitit's object for the job.
    """

    def __init__(self, job: Any) -> None:
        self.job = job
        self.asked = 0

    def poll(self) -> int | None:
        """Return the job's exit code; None while it waits or runs."""
        if not self.job.done():
            return None
        if self.asked:
            return 128 + self.asked
        try:
            return int(self.job.result())
        except Exception:  # submitit's own errors: the job was cancelled, or its node failed
            return _LOST

    def stop(self, signum: int) -> None:
        """Cancel the job; SLURM then sends a signal to the run, which saves."""
        self.asked = signum
        self.job.cancel()

    def kill(self) -> None:
        """Do nothing: SLURM ends a cancelled job itself."""


class Command:
    """Run one job as submitit's function: ``python -m simclr_lightning.cli train ...``, with torchrun on several nodes.

    The run resumes if its folder has a checkpoint. When the time limit is near, or a job of higher priority needs the
    node, submitit calls `checkpoint`: the run saves, and the job goes back into the queue.

    Args:
        overrides: the overrides of the run.
        folder: the folder of the run.
        devices: number of devices per node.
        nodes: number of nodes.
    """

    def __init__(self, overrides: Sequence[str], folder: Path, devices: int, nodes: int) -> None:
        self.overrides, self.folder, self.devices, self.nodes = tuple(overrides), folder, devices, nodes
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the job to its end; return the exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / OUTPUT).open("ab") as output:
            # SLURM sends its warning to all processes; only this one may act on it.
            self.process = subprocess.Popen(
                self.line(),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                preexec_fn=_ignore_warnings,
            )
        code = self.process.wait()
        if code < 0:
            code = 128 - code
        if code in _SIGNALLED:
            time.sleep(SECONDS_TO_BE_ENDED)
        return code

    def checkpoint(self) -> Any:
        """Let the run save, and return the function that submitit runs when the job starts again."""
        import submitit

        if self.process is not None:
            os.kill(self.process.pid, signal.SIGTERM)
            end = time.monotonic() + SECONDS_TO_SAVE
            while not _has_ended(self.process.pid) and time.monotonic() < end:
                time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(type(self)(self.overrides, self.folder, self.devices, self.nodes))

    def line(self) -> list[str]:
        """Return the command line: that of a new run, or of a resumed one if there is a checkpoint."""
        python, *train = command(self.overrides, self.folder)
        if self.nodes == 1:
            return [python, *train]
        import submitit

        job = submitit.JobEnvironment()
        port = 20000 + int(job.raw_job_id) % 20000
        torchrun = {
            "nnodes": self.nodes,
            "nproc-per-node": self.devices,
            "rdzv-id": job.raw_job_id,
            "rdzv-backend": "c10d",
            "rdzv-endpoint": f"{job.hostnames[0]}:{port}",
        }
        return [python, "-m", "torch.distributed.run", *(f"--{key}={value}" for key, value in torchrun.items()), *train]


def _ignore_warnings() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    die_with_parent()


def _has_ended(pid: int) -> bool:
    """Return whether a child process has ended; its exit code stays for `Popen.wait`, which a signal interrupted."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
