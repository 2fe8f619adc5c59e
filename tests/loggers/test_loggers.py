"""metrics.csv, W&B with its real client and a local stand-in for the server, TensorBoard, MLflow and Comet."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import OmegaConf

import warm
from conftest import OVERRIDES
from made_runs import make_run
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.app.runs.run import run_name
from simclr_lightning.loggers import background, services
from simclr_lightning.loggers.background import Background
from simclr_lightning.loggers.metrics_csv import MetricsCSV
from simclr_lightning.loggers.wandb import (
    SECONDS_TO_CLOSE,
    SECONDS_TO_START,
    _options,
    has_key,
    make_tracker,
    sync_command,
)

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
    overrides = (*OVERRIDES, f"data.path={npz}", "logger=wandb", "hydra.run.dir=run", "trainer.max_steps=2")
    assert simclr("train", *overrides) == 0
    assert "wandb sync run/wandb/offline-run-" in capsys.readouterr().out.replace(str(Path.cwd()) + "/", "")
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
    media = {path.name.partition("_")[0] for path in Path("run/wandb").glob("offline-run-*/files/media/*/*")}
    assert media == {"views", "neighbours", "embedding", "results"}


def test_a_report_is_logged_to_wandb(
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


@pytest.fixture(autouse=True)
def _own_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test its own client process."""
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    yield
    if "wandb" in sys.modules:
        with contextlib.suppress(Exception):
            sys.modules["wandb"].teardown()


KEY = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """A stand-in for the W&B server that accepts a run; after ``hangs_after`` it never responds."""

    daemon_threads = True

    def __init__(self, *, hangs_after: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hangs_after, self.hangs = hangs_after, threading.Event()
        self.queries: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: str) -> dict[str, Any]:
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        self.queries.append(asked)
        given = asked["variables"] or {}
        if self.hangs_after and self.hangs_after in asked["query"]:
            self.hangs.set()
        if "upsertBucket" in asked["query"]:
            project = {"id": "P", "name": "simclr", "entity": {"id": "E", "name": "me"}}
            bucket = {"id": "B", "name": given["name"], "displayName": given["displayName"], "project": project}
            return {"data": {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}}
        if "createRunFiles" in asked["query"]:
            files = [{"name": name, "uploadUrl": f"{self.url}/up"} for name in given["files"]]
            return {"data": {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}}
        return {"data": {}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.hangs.is_set():
            time.sleep(600)
        said = json.dumps(self.server.answer(self.path, body.decode("utf-8", "replace"))).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_PUT = do_GET = do_POST  # noqa: N815 - the names that http.server calls

    def log_message(self, *args: object) -> None: ...


def online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in (("WANDB_MODE", "online"), ("WANDB_API_KEY", KEY), ("WANDB_BASE_URL", url)):
        monkeypatch.setenv(name, value)


def group(**changed: object) -> Any:
    kept = {"project": "simclr", "entity": None, "mode": "auto", "group": None, "job_type": "train", "tags": ["tiny"]}
    return OmegaConf.create({**kept, **changed})


def test_a_run_of_a_sweep_is_logged_and_a_resumed_run_has_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    online(monkeypatch, server.url)
    folder = tmp_path / "mysweep" / "3_loss.temperature=0.1,seed=2"
    folder.mkdir(parents=True)
    (folder.parent / "sweep.yaml").write_text("jobs: {}")
    plain = {"loss": {"temperature": 0.1}, "seed": 2}
    ids = []
    for _ in range(2):
        tracker = make_tracker(group(), folder, plain, name=run_name(folder))
        tracker.log_metrics({"train/loss": 3.5}, step=10)
        ids.append(tracker.version)
        tracker.close()
    assert ids[0] == ids[1]
    assert "upload later" not in capsys.readouterr().out
    (first, *_) = [query["variables"] for query in server.queries if "upsertBucket" in query["query"]]
    assert (first["groupName"], first["displayName"]) == ("mysweep", "loss.temperature=0.1,seed=2")
    assert (first["jobType"], first["tags"], first["project"]) == ("train", ["tiny"], "simclr")
    config = {key: value["value"] for key, value in json.loads(first["config"]).items() if key != "_wandb"}
    assert config == plain
    server.shutdown()


def test_a_server_that_is_gone_or_hangs_costs_at_most_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    online(monkeypatch, server.url)
    tracker = make_tracker(group(), tmp_path, {})
    server.hangs.set()
    before = time.monotonic()
    for step in range(100):
        tracker.log_metrics({"train/loss": 3.5}, step=step)
    tracker.close(lambda run: run.summary.update({"status": "finished"}))
    assert time.monotonic() - before < SECONDS_TO_CLOSE + 3  # slack for a busy machine
    assert "upload later with: wandb sync" in capsys.readouterr().out
    (folder,) = (tmp_path / "wandb").glob("run-*")
    assert list(folder.glob("*.wandb"))
    server.shutdown()


def test_an_error_of_the_client_does_not_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = make_tracker(group(mode="offline"), tmp_path, {})

    class Broken:
        id, dir = "x", str(tmp_path / "wandb/offline-run-1/files")

        def log(self, *args: object) -> None:
            raise ConnectionResetError("Connection lost")

        finish = log

    tracker.run.finish()
    tracker.run = Broken()
    for step in range(3):
        tracker.log_metrics({"train/loss": 3.5}, step=step)
    tracker.close()
    said = capsys.readouterr()
    assert said.out.count("W&B failed (Connection lost)") == 1
    assert "wandb sync" in said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("overrides", "name"),
    [(["loss.temperature=0.1", "data.path=/secret", "seed=2"], "loss.temperature=0.1,seed=2"), ([], "run")],
)
def test_a_run_is_named_after_its_overrides(tmp_path: Path, overrides: list[str], name: str) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra/overrides.yaml").write_text(json.dumps(overrides))
    assert run_name(run) == name


def test_under_wandb_agent_the_run_belongs_to_the_sweep_of_the_server(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    options = _options(group(), tmp_path, {}, name="run", report=False)
    assert not {"id", "project", "entity", "group"} & options.keys()
    sweep = yaml.safe_load((Path(__file__).parents[2] / "conf/wandb_sweep.yaml").read_text())
    given = [f"{key}={value.get('min', value.get('values', [0])[0])}" for key, value in sweep["parameters"].items()]
    places = {"${env}": [], "${interpreter}": [], "${program}": [], "${args_no_hyphens}": given}
    overrides = [override for part in sweep["command"] for override in places.get(part, [part])]
    assert Path(__file__).parents[2].joinpath(sweep["program"]).exists()
    cfg = locate_checked(overrides).cfg
    assert (cfg.loss.temperature, cfg.data.batch_size, cfg.seed, cfg.logger.name) == (0.05, 64, 0, "wandb")


def test_a_run_finishes_when_the_server_hangs_and_does_not_save_the_key(npz: Path, tmp_path: Path) -> None:
    server = Server(hangs_after="upsertBucket")
    env = {**os.environ, "WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}
    overrides = (*OVERRIDES, f"data.path={npz}", "logger=wandb", "hydra.run.dir=run", "trainer.max_steps=2")
    command = [sys.executable, "-m", "simclr_lightning.cli", "train", *overrides]
    pipe = subprocess.PIPE
    process = warm.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert server.hangs.is_set()
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert "wandb sync" in out
    assert "Traceback" not in err
    assert KEY not in out + err
    for path in run.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    server.shutdown()


def test_a_server_that_does_not_respond_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    online(monkeypatch, "http://127.0.0.1:9")
    before = time.monotonic()
    tracker = make_tracker(group(), tmp_path, {})
    assert time.monotonic() - before < SECONDS_TO_START + 10  # slack for a busy machine
    assert "continues offline" in capsys.readouterr().out
    tracker.close()
    assert "wandb sync" in str(sync_command(tmp_path))


def test_several_loggers_get_metrics_hyperparameters_and_pictures(npz: Path, simclr: Callable[..., int]) -> None:
    pytest.importorskip("mlflow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = "logger=[csv,tensorboard,mlflow]"
    overrides = (*OVERRIDES, f"data.path={npz}", loggers, "hydra.run.dir=run", "trainer.max_epochs=1")
    assert simclr("train", *overrides) == 0
    assert simclr("train", "ckpt_path=run", "trainer.max_epochs=2") == 0  # it goes on in the same run of MLflow
    found = EventAccumulator("run/tensorboard")
    found.Reload()
    assert set(found.Tags()["images"]) == {"views", "neighbours", "embedding"}
    assert {"train/loss", "hp_metric"} < set(found.Tags()["scalars"])
    assert "optimizer.lr" in Path("run/tensorboard/hparams.yaml").read_text()
    (params,) = Path("run/mlruns").glob("*/*/params")
    assert float((params / "optimizer.lr").read_text()) == 0.003
    names = {path.name for path in params.parent.glob("artifacts/*")}
    assert names == {"views.png", "neighbours.png", "embedding.png"}
    losses = (params.parent / "metrics/train/loss").read_text().splitlines()
    assert len(losses) == len([row for row in rows(Path("run/metrics.csv")) if row["train/loss"]]) == 2


def test_a_service_that_is_away_or_fails_costs_little(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "SECONDS_TO_CLOSE", 0.2)
    gone = threading.Event()

    def broken() -> Any:
        raise ConnectionResetError("Connection lost")

    before = time.monotonic()
    for make in (lambda: gone.wait(60) and DummyLogger(), broken):
        logger = Background("MLflow", make, results=lambda *_: None)
        for step in range(100):
            logger.log_metrics({"train/loss": 3.5}, step=step)
        logger.close([])
    assert time.monotonic() - before < 5  # slack for a busy machine
    gone.set()
    said = capsys.readouterr().out
    assert said.count("MLflow does not respond; metrics.csv has all metrics") == 1
    assert said.count("MLflow failed (Connection lost); training continues without it") == 1


def test_comet_is_offline_in_the_folder_of_the_run_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    made = threading.Event()

    def comet(**options: Any) -> Any:
        asked.append(options)
        made.set()
        return DummyLogger()

    monkeypatch.setitem(sys.modules, "comet_ml", ModuleType("comet_ml"))
    monkeypatch.setattr(services, "CometLogger", comet)
    for key, online in ((None, False), ("k", True)):
        monkeypatch.delenv("COMET_API_KEY", raising=False)
        if key:
            monkeypatch.setenv("COMET_API_KEY", key)
        made.clear()
        services.make_comet({"online": "auto", "project": "p"}, tmp_path, name="run").close([])
        assert made.wait(10)
        assert (asked[-1]["online"], asked[-1]["project"]) == (online, "p")
        assert asked[-1].get("offline_directory") == (None if online else str(tmp_path / "comet"))


@pytest.mark.parametrize(("text", "found"), [("machine localhost login user password x", True), ("", False)])
def test_a_login_is_found_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: bool) -> None:
    (tmp_path / "netrc").write_text(text)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert has_key("http://localhost:8080") is found
