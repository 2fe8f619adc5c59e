"""Jobs through submitit: what SLURM is asked for, and a job that is told to go first, by submitit's local executor."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from simclr_lightning.app.errors import UserError
from simclr_lightning.app.launch.jobs import Job
from simclr_lightning.app.launch.slurm import Cluster, Command, Submitted

pytest.importorskip("submitit")

# Waits until it is asked to save; finds what it saved the next time, and ends.
STUB = """
import os, signal, sys, time
saved, started = sys.argv[1] + "/saved", sys.argv[1] + "/started"
def save(signum, frame):
    open(saved, "w").close()
    sys.exit(128 + signum)
signal.signal(signal.SIGTERM, save)
if os.path.exists(saved): sys.exit(0)
open(started, "w").close()
time.sleep(60)
"""


class StubCommand(Command):
    def line(self) -> list[str]:
        return [sys.executable, "-S", "-c", STUB, str(self.folder)]


def job(folder: Path, **trainer: object) -> Job:
    cfg = {"trainer": {"devices": 4, "num_nodes": 2, "accelerator": "gpu", **trainer}, "data": {"num_workers": 6}}
    return Job(3, ("seed=1",), "seed=1", folder / "3_seed=1", OmegaConf.create(cfg), finished=False)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_nodes_gpus_and_requeue_are_the_runs(tmp_path: Path) -> None:
    found = Cluster(tmp_path, partition="gpu", account=None, options={"mail-type": "END"}).parameters(job(tmp_path))
    assert (found["nodes"], found["gpus_per_node"], found["tasks_per_node"]) == (2, 4, 1)
    assert found["cpus_per_task"] == 4 * (2 + 6)
    assert found["slurm_additional_parameters"] == {"requeue": True, "partition": "gpu", "mail-type": "END"}
    assert Cluster(tmp_path).parameters(job(tmp_path, accelerator="cpu"))["gpus_per_node"] == 0


def test_sbatch_gets_them(tmp_path: Path) -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    cluster = Cluster(tmp_path, partition="gpu", minutes=90, setup=["module load cuda"])
    found = {key.removeprefix("slurm_"): value for key, value in cluster.parameters(job(tmp_path)).items()}
    for name, value in (("job_name", found.pop("name")), ("time", found.pop("timeout_min"))):
        found[name] = value
    found["ntasks_per_node"] = found.pop("tasks_per_node")
    text = _make_sbatch_string(command="run", folder=tmp_path, **found)
    for line in ("nodes=2", "gpus-per-node=4", "requeue", "partition=gpu", "time=90", "signal=USR2@120"):
        assert f"#SBATCH --{line}\n" in text
    assert "module load cuda" in text


def test_what_cannot_be_submitted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"trainer.devices=auto"):
        Cluster(tmp_path, cluster="local").check([job(tmp_path, devices="auto")])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch"):
        Cluster(tmp_path).check([job(tmp_path)])


def test_several_nodes_are_one_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    class Environment:
        raw_job_id = "40017"
        hostnames = ("node7", "node8")

    monkeypatch.setattr(submitit, "JobEnvironment", Environment)
    line = Command(("seed=1",), tmp_path, 4, 2).line()
    assert line[1:3] == ["-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=node7:20017"} <= set(line)
    assert line[-5:] == ["-m", "simclr_lightning.cli", "train", "seed=1", f"hydra.run.dir='{tmp_path}'"]
    assert Command(("seed=1",), tmp_path, 4, 1).line()[1:4] == ["-m", "simclr_lightning.cli", "train"]


def test_a_job_that_is_told_to_go_saves_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    monkeypatch.setenv("PYTHONPATH", ":".join([str(Path(__file__).parent), *sys.path]))
    executor = submitit.AutoExecutor(tmp_path / "submitit", cluster="local")
    executor.update_parameters(timeout_min=5)
    submitted = Submitted(executor.submit(StubCommand((), tmp_path / "run", 1, 1)))
    end = time.monotonic() + 100
    while not (tmp_path / "run/started").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert submitted.poll() is None
    # What SLURM does before the time is up or another job goes first: every process of the step is told.
    (task,) = children(submitted.job._process.pid)
    (run,) = children(task)
    os.kill(run, signal.SIGUSR2)
    os.kill(task, signal.SIGUSR2)
    while submitted.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert submitted.poll() == 0
    assert (tmp_path / "run/saved").exists()
