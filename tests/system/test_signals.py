"""A signal at each stage of a run: exit code, status and the line that says how to go on."""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import warm
from conftest import OVERRIDES
from simclr_lightning import checkpoint, export, pictures
from simclr_lightning.app.launch.ranks import _is_lost_peer
from simclr_lightning.app.training import finish, process
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.evaluation.protocols import frozen
from simclr_lightning.simclr import SimCLR
from simclr_lightning.stopping import STOP

Simclr = Callable[..., int]
STAGES: dict[str, tuple[Any, str, int | None]] = {  # the object and its function that the signal interrupts; the step
    "listing": (ViewsDataModule, "load", None),
    "building": (process, "build", None),
    "first step": (SimCLR, "training_step", 1),
    "features": (finish, "features", 8),
    "a fit": (frozen, "choose_l2", 8),
    "a picture": (pictures, "view_pairs", 8),
    "the map": (pictures, "embedding_map", 8),
    "export": (export, "export_encoder", 8),
}


def status(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["status"])


@pytest.mark.parametrize(
    ("stage", "signum"), list(zip(STAGES, itertools.cycle((signal.SIGTERM, signal.SIGINT)), strict=False))
)
def test_a_signal_stops_the_run_after_the_piece_of_work_and_the_printed_line_works(
    stage: str,
    signum: signal.Signals,
    npz: Path,
    simclr: Simclr,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    owner, name, step = STAGES[stage]
    real, calls = getattr(owner, name), []
    monkeypatch.setattr(STOP, "wait_for_check", lambda seconds: None)  # this process must not be ended

    def interrupted(*words: object, **options: object) -> object:
        if not calls:
            signal.raise_signal(signum)
        result = real(*words, **options)
        calls.append(name)
        return result

    words = [*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run"]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert simclr("train", *words) == 128 + signum
    told = capsys.readouterr()
    # A fit and the features have checks inside; what has none comes to its end.
    assert len(calls) == (0 if stage in ("features", "a fit", "a picture", "the map") else 1)
    assert "error" not in told.err
    found = checkpoint.newest(Path("run"))
    if step is None:
        assert found is None
        assert not Path("run").exists() or "before the first checkpoint: start again" in told.out
        assert not Path("run").exists() or status(Path("run")) == "stopped"
        assert "ckpt_path" not in told.out
        return
    assert found is not None
    assert checkpoint.load(found[0])["global_step"] == step
    assert status(Path("run")) == "stopped"
    assert list(Path("run").rglob(".*.tmp")) == []
    line = told.out.strip().splitlines()[-1]
    assert line == "  simclr train ckpt_path=run"
    trained = []
    monkeypatch.setattr(SimCLR, "on_train_start", lambda self: trained.append(1))
    assert simclr("train", *shlex.split(line)[2:]) == 0
    assert (status(Path("run")), trained) == ("finished", [1] if step < 8 else [])


def test_a_map_that_cannot_be_interrupted_does_not_delay_the_end(npz: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from simclr_lightning import pictures\n"
        "from simclr_lightning.cli import main\n"
        "def forever(*words, **options): print('drawing', flush=True); time.sleep(100)\n"
        "pictures.embedding_map = forever\n"
        "sys.exit(main(sys.argv[1:], ends=True))"
    )
    started = warm.Popen(
        [sys.executable, "-c", code, "train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert started.stdout is not None
    assert any(line == "drawing\n" for line in started.stdout)
    before = time.monotonic()
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (143, "")
    assert time.monotonic() - before < 30
    assert out.endswith("saved at step 8. Resume with:\n  simclr train ckpt_path=run\n")
    assert status(tmp_path / "run") == "stopped"


def test_a_signal_that_comes_when_the_run_is_finished_changes_nothing(
    npz: Path, simclr: Simclr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STOP, "wait_for_check", lambda seconds: None)
    real = finish.close_loggers

    def interrupted(*words: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(*words)

    monkeypatch.setattr(finish, "close_loggers", interrupted)
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run") == 0
    assert status(Path("run")) == "finished"
    assert math.isinf(STOP._patience)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("the images differ: restore them, or give force=true"), False),
        (RuntimeError("cannot restore the optimizer from storage"), False),
        (ConnectionResetError(), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1"), True),
    ],
)
def test_a_lost_peer_is_recognized_by_its_type_or_by_whole_words(error: Exception, lost: bool) -> None:
    assert _is_lost_peer(error) is lost


@pytest.mark.parametrize("given", [(), ("MASTER_ADDR",), ("MASTER_PORT",)])
def test_a_rank_without_the_address_of_its_group_is_refused(
    given: tuple[str, ...],
    npz: Path,
    simclr: Simclr,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in given:
        monkeypatch.setenv(name, "29500")
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run") == 1
    err = capsys.readouterr().err
    assert all((name in err) == (name not in given) for name in ("MASTER_ADDR", "MASTER_PORT"))
    assert "torchrun" in err
    assert "unexpected" not in err
