"""metrics.csv, and W&B by its real client without a server."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import WORDS
from made_runs import make_run
from simclr_lightning.cli import loggers
from simclr_lightning.cli.loggers import MetricsCSV

# W&B's client leaves its sockets and files to the interpreter's end.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_at_once_and_columns_grow(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 1.5, "epoch": 0}, step=1)
    assert rows(log.path) == [{"step": "1", "epoch": "0", "loss": "1.5"}]
    log.log_metrics({"knn": 0.25, "epoch": 0}, step=2)
    log.log_metrics({"loss": 0.5, "epoch": 1}, step=3)
    assert [(row["step"], row["loss"], row["knn"]) for row in rows(log.path)] == [
        ("1", "1.5", ""), ("2", "", "0.25"), ("3", "0.5", ""),
    ]  # fmt: skip


def test_a_resumed_run_writes_the_rows_after_its_checkpoint_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCSV(path)
    for step in range(1, 6):
        log.log_metrics({"loss": step}, step=step)
    log = MetricsCSV(path, step=3)
    log.log_metrics({"loss": 40}, step=4)
    assert [(row["step"], row["loss"]) for row in rows(path)] == [("1", "1"), ("2", "2"), ("3", "3"), ("4", "40")]


def test_wandb_offline_without_a_key(
    npz: Path, simclr: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", "/dev/null")
    words = (*WORDS, f"data.path={npz}", "logger=wandb", "hydra.run.dir=run", "trainer.max_steps=2")
    assert simclr("train", *words) == 0
    assert "wandb sync run/wandb/offline-run-" in capsys.readouterr().out.replace(str(Path.cwd()) + "/", "")
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))


def test_a_report_is_given_to_wandb(
    tmp_path: Path, simclr: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETRC", "/dev/null")
    for tau, score in ((0.1, 0.5), (0.2, 0.75)):
        make_run(tmp_path / "sweeps" / "s" / str(tau), f"loss.temperature={tau}", linear_top1=score)
    assert simclr("report", "sweeps/s", "logger=wandb", "logger.project=other") == 0
    assert "wandb sync " in capsys.readouterr().out
    (run,) = Path("sweeps/s/wandb").glob("offline-run-*")
    media = run / "files" / "media"
    assert sorted(path.stem.rsplit("_", 2)[0] for path in (media / "images").iterdir()) == [
        "curves", "hardness", "score", "similarity",
    ]  # fmt: skip
    (table,) = (media / "table").rglob("*.json")
    held = json.loads(table.read_text())
    names = {row[held["columns"].index("run")]: row[held["columns"].index("linear_top1")] for row in held["data"]}
    assert names == {0.1: 0.5, 0.2: 0.75}
    (page,) = (media / "html").rglob("*.html")
    assert "loss.temperature=0.2 won" in page.read_text()
    assert simclr("report", "sweeps/s", "logger=wandb", "logger.mode=on") == 2


def test_an_unreachable_server_costs_seconds_and_the_key_stays_out(npz: Path, tmp_path: Path) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    env = {**os.environ, "WANDB_MODE": "online", "WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    words = (*WORDS, f"data.path={npz}", "logger=wandb", "hydra.run.dir=run", "trainer.max_steps=2")
    command = [sys.executable, "-m", "simclr_lightning.cli", "train", *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    found = json.loads((run / "summary.json").read_text())
    assert found["status"] == "finished"
    assert "goes on offline" in done.stdout
    assert "wandb sync" in done.stdout
    assert found["seconds"] < 60  # of which W&B may take 10; the machine may be busy
    for path in run.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


def test_tensorboard(npz: Path, simclr: Callable[..., int]) -> None:
    words = (*WORDS, f"data.path={npz}", "logger=tensorboard", "hydra.run.dir=run", "trainer.max_steps=2")
    assert simclr("train", *words) == 0
    assert list(Path("run/tensorboard").glob("events*"))
    assert Path("run/metrics.csv").exists()


@pytest.mark.parametrize(("text", "found"), [("machine localhost login user password x", True), ("", False)])
def test_a_login_is_found_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: bool) -> None:
    (tmp_path / "netrc").write_text(text)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert loggers._has_key("http://localhost:8080") is found
