"""Run the jobs of a sweep on this machine: each is a process tree with its GPUs or its part of the cores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from simclr_lightning.app import training
from simclr_lightning.app.errors import mistake
from simclr_lightning.app.launch.jobs import Job, command
from simclr_lightning.app.launch.ranks import die_with_parent
from simclr_lightning.app.training.devices import accelerator
from simclr_lightning.run_folder import OUTPUT


class Process:
    """A job on this machine, in a separate session.

    Args:
        line: the command line.
        folder: the run's folder, where its output goes.
        environment: variables in addition to those of this process.
    """

    def __init__(self, line: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / OUTPUT).open("a", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def poll(self) -> int | None:
        """Return the job's exit code, 128 + the signal's number after a signal; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def stop(self, signum: int) -> None:
        """Send the job a signal, after which it saves and ends."""
        self.process.send_signal(signum)

    def kill(self) -> None:
        """Kill the rest of the job's session, such as loader workers of a crashed job; ranks die with their parent."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Machine:
    """Start jobs on this machine: each gets its GPUs, or its part of the cores.

    Args:
        at_once: number of jobs at a time.
        gpus: the names of the GPUs, as in CUDA_VISIBLE_DEVICES.
        cores: the cores of this machine.
    """

    def __init__(self, at_once: int, *, gpus: Sequence[str], cores: int) -> None:
        self.at_once, self.cores, self.gpus = at_once, cores, tuple(gpus)
        self.busy: list[tuple[Process, tuple[str, ...]]] = []

    def check(self, jobs: Sequence[Job]) -> None:
        """Check that ``at_once`` jobs fit on this machine at a time.

        Raises:
            UserError: they need more GPUs than there are (the message shows the arithmetic), or several nodes.
            ValueError: the images of an unfinished job do not exist.
        """
        training.check_encoders(job.cfg for job in jobs if not job.finished)
        for job in jobs:
            if not job.finished:
                training.check_images(job.cfg)
            if job.cfg.trainer.num_nodes > 1:
                raise mistake(
                    f"trainer.num_nodes={job.cfg.trainer.num_nodes}: a sweep on several nodes is hydra/launcher=slurm"
                )
            needed = self.at_once * self._devices(job)
            if self.at_once > 1 and accelerator(job.cfg) == "cuda" and needed > len(self.gpus):
                raise mistake(
                    f"hydra.launcher.jobs={self.at_once} x trainer.devices={self._devices(job)} is {needed} GPUs, and "
                    f"this machine has {len(self.gpus)}; lower one of them"
                )

    def start(self, job: Job) -> Process | None:
        """Start a job; return None while another job uses the GPUs that it needs."""
        environment = {}
        held: tuple[str, ...] = ()
        if self.at_once > 1:
            share = self.cores // (self.at_once * self._devices(job))
            environment["OMP_NUM_THREADS"] = str(max(1, share))
            if accelerator(job.cfg) == "cuda":
                self.busy = [(process, names) for process, names in self.busy if process.poll() is None]
                free = [name for name in self.gpus if all(name not in names for _, names in self.busy)]
                held = tuple(free[: self._devices(job)])
                if len(held) < self._devices(job):
                    return None
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        process = Process(command(job.overrides, job.folder), job.folder, environment)
        self.busy.append((process, held))
        return process

    def _devices(self, job: Job) -> int:
        """Return the number of devices of a job; for "auto", an equal part of all GPUs."""
        asked = job.cfg.trainer.devices
        if asked in ("auto", -1):
            return max(1, len(self.gpus) // self.at_once)
        return int(asked) if isinstance(asked, int) else len(asked)


def gpus() -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES has for this process's GPUs."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]
