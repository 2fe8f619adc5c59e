"""Runs on several processes and sweeps, as real process trees."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import warm
from conftest import OVERRIDES, small_images
from simclr_lightning import checkpoint
from simclr_lightning.run_folder import OUTPUT

pytestmark = pytest.mark.timeout(900)  # seconds: the machine may be busy


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "simclr_lightning.cli", "train", *words]
    return warm.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(process: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def processes(mark: str) -> list[int]:
    """Processes whose command line or folder holds ``mark``."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def ranks(folder: Path) -> list[int]:
    found = []
    for pid in processes("rank\0"):
        with contextlib.suppress(OSError):
            if str(folder) in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return sorted(found)


def wait_for(condition: object, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def steps(run: Path) -> int:
    with contextlib.suppress(OSError, IndexError, KeyError, ValueError), (run / "metrics.csv").open() as file:
        return int(list(csv.DictReader(file))[-1]["step"])
    return 0


def summary(run: Path) -> dict[str, object]:
    return json.loads((run / "summary.json").read_text())


LASTS = ("trainer.max_epochs=100000", "callbacks.online.every_n_epochs=0", "callbacks.checkpoints.every_n_epochs=5")


@contextlib.contextmanager
def training(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A run in ``folder/run`` that lasts until it is stopped, once it has trained further than its last checkpoint."""
    run = folder / "run"
    process, before = start(folder, *words), steps(run)
    try:
        wait_for(
            lambda: (steps(run) > before and (run / "checkpoints/last.ckpt").exists()) or process.poll() is not None
        )
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """The folder of a run on two processes that SIGTERM stopped, the exit code, and what it printed on both streams."""
    folder = tmp_path_factory.mktemp("stopped")
    images, labels = small_images(64)
    np.savez(folder / "images.npz", train_images=images, train_labels=labels)
    words = (*OVERRIDES, "data.path=images.npz", "trainer.devices=2", f"hydra.run.dir={folder / 'run'}")
    with training(folder, *words, *LASTS) as process:
        process.send_signal(signal.SIGTERM)
        return folder, *finish(process)


def test_two_processes_give_one_run_that_sigterm_stops(stopped: tuple[Path, int, str, str]) -> None:
    folder, code, out, err = stopped
    assert (code, ranks(folder)) == (143, []), err
    assert "Traceback" not in err
    assert "Warning" not in err
    assert "30 negatives" in out  # of the global batch of 16, over both processes
    assert "ckpt_path=" in out
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["run"]
    found = summary(folder / "run")
    assert (found["status"], found["devices"]) == ("stopped", 2)
    assert found["steps"] == checkpoint.load(folder / "run/checkpoints/last.ckpt")["global_step"] > 0


def test_a_stopped_run_goes_on_and_a_killed_rank_is_named_and_none_is_left(
    stopped: tuple[Path, int, str, str],
) -> None:
    folder, run = stopped[0], stopped[0] / "run"
    saved = checkpoint.load(run / "checkpoints/last.ckpt")["global_step"]
    with training(folder, "ckpt_path=last", f"hydra.run.dir={folder}") as process:
        pids = ranks(run)
        assert len(pids) == 2
        os.kill(pids[1], signal.SIGKILL)
        code, _, err = finish(process)
    assert code not in (0, None)
    assert ranks(run) == []
    assert steps(run) > saved
    assert "was killed by SIGKILL" in err
    assert "rank 1" in err
    assert "Traceback" not in err
    assert err.strip().count("\n") <= 5, err
    assert summary(run)["status"] == "failed"


def test_a_failed_run_goes_on_and_a_killed_parent_leaves_no_rank(stopped: tuple[Path, int, str, str]) -> None:
    folder = stopped[0]
    with training(folder, f"ckpt_path={folder / 'run'}") as process:
        assert len(ranks(folder)) == 2
        process.kill()
        wait_for(lambda: not ranks(folder))


def sweep(folder: Path, *words: str) -> tuple[int, str, str]:
    return finish(start(folder, "-m", *words))


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("**/summary.json"))


def spied_loss(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> tuple[str, ...]:
    """Words for a loss of the user's own that runs a line of Python before each step."""
    text = "import os, sys, time\nfrom pathlib import Path\nfrom simclr_lightning import NTXent\n\nclass Spy(NTXent):\n"
    text += f"    def forward(self, z_a, z_b):\n        {line}\n        return super().forward(z_a, z_b)\n"
    (folder / "spy.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("spy", None)
    return "trusted=[spy]", "loss._target_=spy.Spy"


def test_a_job_that_is_killed_is_resumed_by_the_same_command_and_no_finished_job_runs_again(
    npz: Path, tmp_path: Path, simclr: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = (tmp_path / "sweep" / f"{n}_trainer.max_epochs={epochs}" for n, epochs in enumerate((1, 3)))
    saved, go = long / "checkpoints/last.ckpt", tmp_path / "go"
    # Once it has saved, the longer job waits to be killed.
    waits = f"'trainer.max_epochs=3' in sys.argv and Path({str(saved)!r}).exists() and not Path({str(go)!r}).exists()"
    hold = f"while {waits}: time.sleep(0.05)"
    words = [word for word in OVERRIDES if not word.startswith("trainer.max_epochs")]
    words += [f"data.path={npz}", "trainer.max_epochs=1,3", "hydra.sweep.dir=sweep", "hydra.launcher.jobs=2"]
    words += spied_loss(tmp_path, monkeypatch, hold)
    process = start(tmp_path, "-m", *words)
    wait_for(lambda: saved.exists() or process.poll() is not None)
    for pid in processes(f"{long}"):
        os.kill(pid, signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 1, err
    assert "failed (killed by SIGKILL)" in err
    assert "1 of 2 finished, 1 failed" in out
    before = {path: path.stat().st_mtime_ns for path in short.rglob("*") if path.is_file()}
    assert checkpoint.load(saved)["global_step"] == 4
    go.touch()
    capsys.readouterr()
    monkeypatch.setattr(subprocess, "Popen", warm.Popen)
    assert simclr("train", "-m", *words) == 0
    assert capsys.readouterr().out.count("finished before") == 1
    assert {path: path.stat().st_mtime_ns for path in short.rglob("*") if path.is_file()} == before
    assert (summary(long)["status"], summary(long)["steps"]) == ("finished", 12)
    first_lines = (long / "train.log").read_text().count("64 images, ")
    assert first_lines == 2  # one beginning, one resumption


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, str, str]]:
    """The folder of a sweep of two jobs on two processes each, of which the first fails; its exit code and output."""
    folder = tmp_path_factory.mktemp("pair")
    images, labels = small_images(64)
    np.savez(folder / "images.npz", train_images=images, train_labels=labels)
    words = [word for word in OVERRIDES if not word.startswith("data.batch_size")]
    # 128 is more than the 64 images: known only once they are loaded, in every rank of the job.
    words += ["data.path=images.npz", "trainer.devices=2", "data.batch_size=128,16"]
    return folder, sweep(folder, *words, f"hydra.sweep.dir={folder / 'sweep'}")


def test_a_job_that_fails_leaves_no_process_and_the_others_run(pair: tuple[Path, tuple[int, str, str]]) -> None:
    folder, (code, _, err) = pair
    assert code != 0
    assert "larger than the 64 training images" in err
    assert "1 job(s) failed" in err
    assert "Traceback" not in err
    failed, finished = map(summary, runs(folder))
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert (finished["steps"], finished["devices"], finished["images_seen"]) == (8, 2, 128)
    assert "Warning" not in (runs(folder)[1] / OUTPUT).read_text()
    assert ranks(folder) == []


def test_two_nodes_give_the_run_of_two_devices(pair: tuple[Path, tuple[int, str, str]], tmp_path: Path) -> None:
    """Two launchers as SLURM starts them, a process each: one folder, and the weights of ``trainer.devices=2``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    train = [
        "-m",
        "simclr_lightning.cli",
        "train",
        *OVERRIDES,
        f"data.path={pair[0] / 'images.npz'}",
        "trainer.num_nodes=2",
    ]
    nodes = []
    for node in range(2):
        slurm = {"NTASKS": 2, "NNODES": 2, "PROCID": node, "NODEID": node, "JOB_ID": 1, "LOCALID": 0, "JOB_NAME": "run"}
        env = {**os.environ, "OMP_NUM_THREADS": "1", **{f"SLURM_{name}": str(value) for name, value in slurm.items()}}
        command = [sys.executable, "-m", "torch.distributed.run", *where, f"--node-rank={node}", *train]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        nodes.append(warm.Popen(command, cwd=tmp_path, env=env, text=True, start_new_session=True, **pipes))
    try:
        ends = [finish(node) for node in nodes]
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
    assert [code for code, _, _ in ends] == [0, 0], ends
    (run,) = runs(tmp_path)
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert (summary(run)["status"], summary(run)["devices"], summary(run)["steps"]) == ("finished", 2, 8)
    ours, theirs = (
        checkpoint.load(folder / "checkpoints/last.ckpt")["state_dict"] for folder in (run, runs(pair[0])[1])
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_devices_that_are_not_those_of_torchrun_are_refused(
    npz: Path, simclr: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert simclr("train", *OVERRIDES, f"data.path={npz}") == 2
    assert "2 processes were started from outside" in capsys.readouterr().err
    assert simclr("train", "-m", *OVERRIDES, f"data.path={npz}", "seed=1,2") != 0
    assert "cannot run under torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(("tasks", "says"), [("2", "srun torchrun"), ("x", "SLURM_NTASKS")])
def test_several_tasks_of_srun_are_refused_before_anything(
    tasks: str,
    says: str,
    npz: Path,
    simclr: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    monkeypatch.setenv("SLURM_PROCID", "0")
    for words in ((), ("dry_run=true",)):
        assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", *words) == 1
        assert says in capsys.readouterr().err
    assert not Path("run").exists()


def test_ctrl_c_reaches_loader_workers_and_the_run_still_saves(tmp_path: Path) -> None:
    for index, image in enumerate(small_images(40)[0]):
        path = tmp_path / "images" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    words = [word for word in OVERRIDES if not word.startswith(("data=", "trainer.max_epochs"))]
    run = tmp_path / "run"
    process = start(
        tmp_path, *words, "data=folder", "data.path=images", "data.num_workers=2", "hydra.run.dir=run", *LASTS
    )  # fmt: skip
    wait_for(lambda: (run / "checkpoints/last.ckpt").exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code, _, err = finish(process)
    assert code == 130, err
    assert "Traceback" not in err
    assert summary(run)["status"] == "stopped"


def test_a_failed_start_does_not_block_the_folder(npz: Path, simclr: object) -> None:
    words = [word for word in OVERRIDES if not word.startswith("data.batch_size")]
    words = [*words, f"data.path={npz}", "hydra.run.dir=run", "trainer.max_steps=1"]
    assert simclr("train", *words, "data.batch_size=128") != 0
    assert "larger than the 64 training images" in summary(Path("run"))["reason"]
    assert simclr("train", *words, "data.batch_size=16") == 0


def test_optuna_gives_every_rank_the_same_temperature(
    npz: Path, tmp_path: Path, simclr: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    note = f"Path({str(tmp_path)!r}, f'{{self.temperature!r}} of {{os.environ.get(\"RANK\")}}').touch()"
    spied = (*spied_loss(tmp_path, monkeypatch, note), "loss.temperature=interval(0.1,1)")
    words = (*OVERRIDES, f"data.path={npz}", "trainer.devices=2", "trainer.max_steps=2")
    study = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=study")
    assert simclr("train", *words, *spied, *study) == 0
    tried = {summary(file.parent)["temperature"] for file in tmp_path.glob("study/*/summary.json")}
    seen = {tuple(file.name.split(" of ")) for file in tmp_path.glob("* of [0-9]")}
    assert len(tried) == 1
    assert seen == {(repr(temperature), rank) for temperature in tried for rank in "01"}
