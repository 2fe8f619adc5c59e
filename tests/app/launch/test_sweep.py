"""A sweep's jobs side by side: small programs in the place of runs; and what the user sees of them."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from conftest import OVERRIDES
from simclr_lightning.app.errors import LINES, UserError
from simclr_lightning.app.launch import dashboard, jobs as planned, local
from simclr_lightning.app.launch.dashboard import Dashboard
from simclr_lightning.app.launch.jobs import Job, SweepStopped, plan, run_jobs
from simclr_lightning.app.launch.local import Machine
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.app.runs.run import locked, write_config
from simclr_lightning.run_folder import Progress, read_progress, write_summary

# Notes when it runs and on what; waits to be stopped when its word says so.
STUB = """
import json, os, signal, sys, time
word, folder = sys.argv[1:]
def note(**what):
    with open(folder + "/notes", "a") as file: file.write(json.dumps({"time": time.time(), **what}) + "\\n")
def stopped(signum, frame):
    note(stopped=signum)
    sys.exit(128 + signum)
for signum in (signal.SIGTERM, signal.SIGINT): signal.signal(signum, stopped)
note(gpus=os.environ.get("CUDA_VISIBLE_DEVICES"), threads=os.environ.get("OMP_NUM_THREADS"))
if word == "wait": time.sleep(60)
if word == "kill": os.kill(os.getpid(), 9)
if word == "fail": sys.exit("noise\\nerror: the disk is full\\nmake room")
time.sleep(0.15)
note(end=True)
"""
CORES = 8


def job(folder: Path, number: int, word: str = "", *, count: int = 1, accelerator: str = "cpu") -> Job:
    trainer = {"devices": count, "num_nodes": 1, "accelerator": accelerator}
    encoder = {"_target_": "simclr_lightning.encoders.resnet"}
    cfg = {"trainer": trainer, "data": {"path": None}, "model": {"encoder": encoder}, "views": {"size": 8}}
    cfg = OmegaConf.create(cfg)
    return Job(number, (word,), f"seed={number}", folder / str(number), cfg, finished=False)


def notes(job: Job) -> list[dict[str, object]]:
    return [json.loads(line) for line in (job.folder / "notes").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "command", lambda words, folder: [sys.executable, "-S", "-c", STUB, *words, str(folder)])


def run(jobs: list[Job], machine: Machine, *, at_once: int) -> tuple[dict[int, int], str]:
    shown = io.StringIO()
    with Dashboard(jobs, Console(file=shown, width=200)) as watcher:
        codes = run_jobs(jobs, machine.start, at_once=at_once, watcher=watcher, seconds=0.01)
    return codes, shown.getvalue()


class Together(Dashboard):
    """Notes which jobs run together."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__(jobs, Console(file=io.StringIO()))
        self.running: set[int] = set()
        self.groups: list[set[int]] = []

    def started(self, job: Job) -> None:
        super().started(job)
        self.running.add(job.number)
        self.groups.append(set(self.running))

    def ended(self, job: Job, code: int) -> None:
        super().ended(job, code)
        self.running.remove(job.number)


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_jobs_at_once_as_asked_for_with_the_cores_divided(tmp_path: Path, at_once: int) -> None:
    jobs = [job(tmp_path, number, count=2) for number in range(5)]
    watcher = Together(jobs)
    start = Machine(at_once, gpus=(), cores=CORES).start
    codes = run_jobs(jobs, start, at_once=at_once, watcher=watcher, seconds=0.01)
    assert codes == dict.fromkeys(range(5), 0)
    assert max(map(len, watcher.groups)) == at_once
    assert at_once > 1 or watcher.groups == [{0}, {1}, {2}, {3}, {4}]
    outside = os.environ.get("OMP_NUM_THREADS")
    assert {notes(one)[0]["threads"] for one in jobs} == {outside if at_once == 1 else str(CORES // (at_once * 2))}


def test_jobs_at_once_never_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "accelerator", lambda cfg: "cuda")
    monkeypatch.setattr(local.training, "check_images", lambda cfg: None)  # which looks for the real GPUs
    jobs = [job(tmp_path, number, count=1 + number % 2, accelerator="gpu") for number in range(6)]
    names = ("3", "GPU-a", "5", "7")
    machine = Machine(2, gpus=names, cores=CORES)
    machine.check(jobs)
    watcher = Together(jobs)
    codes = run_jobs(jobs, machine.start, at_once=2, watcher=watcher, seconds=0.01)
    assert set(codes.values()) == {0}
    held = [set(str(notes(one)[0]["gpus"]).split(",")) for one in jobs]
    assert [len(own) for own in held] == [one.cfg.trainer.devices for one in jobs]
    assert set().union(*held) <= set(names)
    pairs = [group for group in watcher.groups if len(group) == 2]
    assert pairs
    assert all(not held[a] & held[b] for a, b in pairs)


def test_more_gpus_than_there_are_is_refused_with_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "accelerator", lambda cfg: "cuda")
    monkeypatch.setattr(local.training, "check_images", lambda cfg: None)  # which looks for the real GPUs
    machine = Machine(3, gpus=("0", "1", "2", "3"), cores=CORES)
    with pytest.raises(UserError, match=r"jobs=3 x trainer.devices=2 is 6 GPUs, and this machine has 4"):
        machine.check([job(tmp_path, 0, count=1, accelerator="gpu"), job(tmp_path, 1, count=2, accelerator="gpu")])
    several = job(tmp_path, 0)
    several.cfg.trainer.num_nodes = 2
    with pytest.raises(UserError, match="hydra/launcher=slurm"):
        Machine(1, gpus=(), cores=1).check([several])


def test_a_job_that_fails_is_named_with_its_reason_and_the_rest_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [job(tmp_path, number, word) for number, word in enumerate(("fail", "", "kill", ""))]
    codes, shown = run(jobs, Machine(1, gpus=(), cores=CORES), at_once=1)
    assert codes == {0: 1, 1: 0, 2: 128 + signal.SIGKILL, 3: 0}
    said = capsys.readouterr().err
    assert "[0] seed=0: failed (exit 1)\nerror: the disk is full\nmake room\n" in said
    assert "noise" not in said
    assert "[2] seed=2: failed (killed by SIGKILL)" in said
    assert "2 of 4 finished, 2 failed" in shown


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_that_run_and_starts_no_other(tmp_path: Path, signum: signal.Signals) -> None:
    jobs = [job(tmp_path, number, "wait") for number in range(3)]

    def ask() -> None:
        while not all((one.folder / "notes").exists() for one in jobs[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    threading.Thread(target=ask).start()
    with pytest.raises(SweepStopped) as stopped:
        run(jobs, Machine(2, gpus=(), cores=CORES), at_once=2)
    assert stopped.value.code == 128 + signum
    assert [notes(one)[-1].get("stopped") for one in jobs[:2]] == [signum, signum]
    assert not jobs[2].folder.exists()
    assert signal.getsignal(signum) is before


def test_a_job_that_does_not_answer_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "SECONDS_TO_STOP", 0.1)
    deaf = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); open(sys.argv[2], 'w'); time.sleep(60)"
    line = [sys.executable, "-S", "-c", deaf]
    monkeypatch.setattr(local, "command", lambda words, folder: [*line, *words, str(folder / "notes")])
    one = job(tmp_path, 0)

    def ask() -> None:
        while not (one.folder / "notes").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    before = time.monotonic()
    with pytest.raises(SweepStopped):
        run([one], Machine(1, gpus=(), cores=CORES), at_once=1)
    assert time.monotonic() - before < 30


# -- the plan -----------------------------------------------------------------------------------------------


def test_the_plan_names_folders_and_skips_what_is_finished_in_the_same_configuration(npz: Path, tmp_path: Path) -> None:
    def planned_jobs(*seeds: int, epochs: int = 2) -> list[Job]:
        words = [word for word in OVERRIDES if not word.startswith("trainer.max_epochs")]
        passed_on = (*words, f"data.path={npz}", f"trainer.max_epochs={epochs}")
        each = [(f"seed={seed}",) for seed in seeds]
        return plan(each, first=4, sweep=tmp_path / "sweep", passed_on=passed_on, varied={"seed"})

    jobs = planned_jobs(0, 1)
    assert [one.folder.name for one in jobs] == ["4_seed=0", "5_seed=1"]
    assert [(one.name, one.finished, one.cfg.seed) for one in jobs] == [("seed=0", False, 0), ("seed=1", False, 1)]
    done = locate_checked((*jobs[0].overrides, f"hydra.run.dir={jobs[0].folder}"))
    jobs[0].folder.mkdir(parents=True)
    write_config(done)
    write_summary(jobs[0].folder, {"status": "finished"})
    assert [one.finished for one in planned_jobs(0, 1)] == [True, False]
    # Another configuration in the same folder is not taken for the job's result.
    with pytest.raises(UserError, match="already contains a run"):
        planned_jobs(0, 1, epochs=3)
    with pytest.raises(UserError, match="temperature"):
        plan([("loss.temperature=-1", f"data.path={npz}")], first=0, sweep=tmp_path, passed_on=OVERRIDES, varied=())


# -- the board ----------------------------------------------------------------------------------------------


def write_run(folder: Path, *, step: int, score: float, total: int = 40) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    knn, loss = (score, 4.25) if score >= 0 else ("", -score)  # the loss is there in every run
    rows = f"step,epoch,train/loss,online/knn_top1,online/held_out_loss\n5,0,3.5,,\n{step - 1},1,,{knn},{loss}\n"
    rows += f"{step},1,3.2,,\n"
    (folder / "metrics.csv").write_text(rows)
    (folder / "train.log").write_text(f"2026 INFO 64 images, 4 steps an epoch of 16 images, {total} steps\n")


def test_progress_is_read_from_what_a_run_writes(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == Progress(0, None, None)
    write_run(tmp_path, step=12, score=0.75)
    assert read_progress(tmp_path) == Progress(12, 40, 0.75)
    with (tmp_path / "train.log").open("a") as file:
        file.write("2026 INFO epoch 2, step 12/80, 602 images/s\n")
    assert read_progress(tmp_path) == Progress(12, 80, 0.75)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("select: held_out_loss\n")
    assert read_progress(tmp_path).score == -4.25
    (tmp_path / ".hydra" / "config.yaml").write_text("select: " + "[" * 5000)
    assert read_progress(tmp_path).score == 0.75
    (tmp_path / ".hydra" / "config.yaml").unlink()
    write_run(tmp_path, step=12, score=-3.5)
    assert read_progress(tmp_path).score == -3.5


def test_the_table_shows_jobs_progress_time_left_and_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(tmp_path, number) for number in range(4)]
    now = [100.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: now[0])
    shown = Dashboard(jobs, Console(file=io.StringIO(), width=120))
    for one in jobs[:2]:
        shown.started(one)
    write_run(jobs[0].folder, step=10, score=0.5)
    shown.look()
    now[0] += 10
    write_run(jobs[0].folder, step=20, score=0.55)
    write_run(jobs[1].folder, step=40, score=0.6)
    shown.look()
    shown.ended(jobs[1], 0)  # after 10 s
    out = io.StringIO()
    Console(file=out, width=120).print(shown.table(rows=3))
    lines = [line.split() for line in out.getvalue().splitlines()]
    # 10 steps took 10 s, so 20 more take 20 s.
    assert lines[1] == ["[0]", "seed=0", "running", "20/40", "20", "s", "55.0%"]
    assert lines[2] == ["[1]", "seed=1", "finished", "40/40", "60.0%"]
    assert lines[3] == ["[2]", "seed=2", "waiting"]
    assert lines[4] == ["and", "1", "more"]
    # Two wait, one runs at a time: 2 x 10 s after the 20 s of the first.
    assert "1 of 4 finished, about 40 s left, best: [1] seed=1 60.0%" in out.getvalue()


def test_a_terminal_gets_the_table(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number, word) for number, word in enumerate(("", "fail"))]
    out = io.StringIO()
    console = Console(file=out, width=100, height=20, force_terminal=True, color_system=None)
    with Dashboard(jobs, console) as watcher:
        run_jobs(jobs, Machine(1, gpus=(), cores=1).start, at_once=1, watcher=watcher, seconds=0.01)
    last = out.getvalue()[out.getvalue().rindex("job ") :]
    assert [line.split()[:3] for line in last.splitlines()[1:3]] == [
        ["[1]", "seed=1", "failed"], ["[0]", "seed=0", "finished"],
    ]  # fmt: skip
    assert "error: the disk is full" in out.getvalue()


def test_a_sweep_in_this_process(
    npz: Path, simclr: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub(words: list[str], folder: Path) -> list[str]:
        value = next(word.partition("=")[2] for word in words if word.startswith("loss.temperature="))
        summary = json.dumps({"status": "finished", "held_out_score": 1 - abs(float(value) - 0.3)})
        code = f"open({str(folder / 'summary.json')!r}, 'w').write({summary!r}); print({value!r})"
        return [sys.executable, "-S", "-c", code if value != "0.9" else "import sys; sys.exit('error: no')"]

    monkeypatch.setattr(local, "command", stub)
    words = ("train", "-m", *OVERRIDES, f"data.path={npz}", "hydra.sweep.dir=sweep", "hydra.launcher.jobs=2")
    Path("sweep").mkdir()
    Path("sweep/sweep.yaml").write_text("jobs: [}")  # damaged
    assert simclr(*words, "loss.temperature=0.1,0.9,0.3", "seed=5") == 1
    found = capsys.readouterr()
    assert "1 job(s) failed" in found.err
    assert "1_loss.temperature=0.9" in found.err
    assert "2 of 3 finished, 1 failed" in found.out
    assert "Error executing" not in found.err  # Hydra's own line
    names = sorted(path.name for path in Path("sweep").iterdir() if path.is_dir())
    assert names == ["0_loss.temperature=0.1", "1_loss.temperature=0.9", "2_loss.temperature=0.3"]
    manifest = OmegaConf.load("sweep/sweep.yaml")
    assert dict(manifest.jobs) == {name: name[2:] for name in names}
    with locked(Path("other")):
        assert simclr(*words, "hydra.sweep.dir=other", "seed=5,6") == 1
    assert "give another hydra.sweep.dir=" in capsys.readouterr().err


GRID = {
    "seed=0,x": "seed='x'",
    "model=tiny,resnet5O": "did you mean resnet50",
    "loss.temperature=0.1,-1": "loss.temperature=-1",
    "loss.temperature=interval(0.1,1)": "hydra/sweeper=optuna",
    "hydra.launcher.jobs=0": "hydra.launcher.jobs=0",
    "hydra.launcher.job=2": "hydra.launcher.jobs",
    "+hydra.launcher.x=1": "hydra.launcher.*",
    "hydra.launcher=null": "hydra/launcher=",
    "hydra.sweeper=null": "hydra/sweeper=",
    "hydra/launcher=basic": "hydra/launcher=simclr",
    "hydra.sweeper.max_batch_size=0": "hydra.sweeper.max_batch_size=0",
    "hydra.sweeper.params={seed:[0,1]}": "such as seed=0,1",
    "hydra.sweeper.params=x": "hydra.sweeper.params",
}
SEARCH = {
    "hydra.sweeper.n_jobs=0": "hydra.sweeper.n_jobs=0",
    "hydra.sweeper.storage=nothing://x": "hydra.sweeper.*",
    "hydra.sweeper.sampler=x": "hydra.sweeper.sampler",
    "hydra/sweeper/sampler=grid": "hydra.sweeper.*",  # which an interval does not suit
    "callbacks.online.every_n_epochs=0": "callbacks.online.every_n_epochs",
}


@pytest.mark.parametrize("word", [*GRID, *SEARCH])
def test_a_sweep_that_cannot_be_says_why_and_leaves_nothing(
    word: str, npz: Path, simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "-m", *OVERRIDES, f"data.path={npz}", "hydra.sweep.dir=sweep"]
    if word in SEARCH:
        pytest.importorskip("optuna")
        words += ["hydra/sweeper=optuna", "loss.temperature=interval(0.1,1)"]
    assert simclr(*words, word) == 2
    said = capsys.readouterr().err
    assert (GRID | SEARCH)[word] in said
    assert "error: unexpected" not in said
    assert len(said.splitlines()) <= LINES
    assert not Path("sweep").exists()


def test_what_is_only_looked_at_or_has_no_images_leaves_nothing(
    npz: Path, simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "-m", *OVERRIDES, "hydra.sweep.dir=sweep", "hydra.sweeper.max_batch_size=1")
    assert simclr(*words, f"data.path={npz}", "model=glob(resnet1*)", "dry_run=true") == 0
    assert "3 jobs in" in capsys.readouterr().out  # resnet101, 152 and 18
    assert simclr(*words, f"data.path='{npz}','nope.npz'") == 1
    assert "data.path=nope.npz: there is no such file (looked in " in capsys.readouterr().err
    assert not Path("sweep").exists()


def test_optuna_tries_maximises_and_finds_its_trials_again(
    npz: Path, simclr: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    tried: list[float] = []

    def stub(words: list[str], folder: Path) -> list[str]:
        value = float(next(word.partition("=")[2] for word in words if word.startswith("loss.temperature=")))
        tried.append(value)
        summary = json.dumps({"status": "finished", "held_out_score": 1 - abs(value - 0.3)})
        code = f"open({str(folder / 'summary.json')!r}, 'w').write({summary!r})"
        return [sys.executable, "-S", "-c", code]

    monkeypatch.setattr(local, "command", stub)
    words = ("train", "-m", *OVERRIDES, f"data.path={npz}", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    space = "loss.temperature=tag(log,interval(0.05,1))"
    assert simclr(*words, space, "hydra.sweep.dir=dry", "dry_run=true") == 0
    assert tried == []
    assert "stopped" not in capsys.readouterr().err
    assert simclr(*words, space, "hydra.sweep.dir=sweep") == 0
    assert len(set(tried)) == 2
    assert all(0.05 <= value <= 1 for value in tried)
    best = OmegaConf.load("sweep/optimization_results.yaml").best_params["loss.temperature"]
    assert best == min(tried, key=lambda value: abs(value - 0.3))
    assert len([path for path in Path("sweep").iterdir() if path.is_dir()]) == 2
    first = list(tried)
    assert simclr(*words, space, "hydra.sweep.dir=again") == 0
    assert tried[2:] == first  # the same command makes the same choices
    Path("grid").mkdir()
    Path("grid/sweep.yaml").write_text("jobs: " + "[" * 5000)  # damaged
    assert simclr(*words, "loss.temperature=choice(0.2,0.4)", "hydra/sweeper/sampler=grid", "hydra.sweep.dir=grid") == 0
    assert sorted(tried[4:]) == [0.2, 0.4]
    monkeypatch.setattr(local, "command", lambda words, folder: [sys.executable, "-S", "-c", "import sys; sys.exit(3)"])
    capsys.readouterr()
    assert simclr(*words, space, "hydra.sweep.dir=failing") == 1
    said = capsys.readouterr().err
    assert "2 job(s) failed" in said
    assert "Error executing" not in said
