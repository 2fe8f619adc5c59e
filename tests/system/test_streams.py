"""A run goes on to its end whatever becomes of its streams."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import warm
from conftest import OVERRIDES

ROOT = Path(__file__).parents[2]
SHORT = (*OVERRIDES, "experiment=null", "model=tiny", "trainer.max_steps=2", "hydra.run.dir=run")


def shell(command: str, folder: Path, *words: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``simclr`` is this program."""
    program = f"{shlex.quote(sys.executable)} -m simclr_lightning.cli"
    line = command.replace("OVERRIDES", shlex.join(words))
    line = program + line.removeprefix("simclr") if line.startswith("simclr") else line
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, text=True, capture_output=True, timeout=200,
        env={name: value for name, value in env.items() if value is not None},
    )  # fmt: skip


def assert_finished(run: Path) -> None:
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert "steps" in (run / "train.log").read_text()


def test_a_run_ends_well_without_streams(npz: Path, tmp_path: Path) -> None:
    done = shell("simclr train OVERRIDES <&- >&- 2>&-", tmp_path, *SHORT, f"data.path={npz}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_finished(tmp_path / "run")


def test_a_run_ends_well_without_a_reader(npz: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simclr_lightning.cli", "train", *SHORT, f"data.path={npz}"]
    process = warm.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    assert process.stdout is not None
    assert len(process.stdout.read(1)) == 1
    process.stdout.close()
    assert process.wait(200) == 0
    assert_finished(tmp_path / "run")


def test_a_mistake_has_its_exit_code_without_streams(tmp_path: Path) -> None:
    assert shell("simclr train loss.temprature=1 <&- >&- 2>&-", tmp_path).returncode == 2


def test_help_ends_quietly_when_its_reader_is_gone(tmp_path: Path) -> None:
    done = shell("simclr --help | true; exit ${PIPESTATUS[0]}", tmp_path, PYTHONUNBUFFERED="1")
    assert (done.returncode in (0, 141), done.stderr) == (True, "")


def test_a_file_that_is_opened_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "from simclr_lightning.cli import streams; streams.open_closed(); import os; f = open('data.txt', 'w');"
        "f.write(str(f.fileno())); f.flush(); os.system('echo lost; echo lost >&2'); print(1)"
    )
    shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-", tmp_path)
    assert int((tmp_path / "data.txt").read_text()) > 2


def test_a_home_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    code = "from simclr_lightning.cli import main; main(['--help']); import matplotlib.pyplot"
    homeless = {"HOME": "/proc/none", "MPLCONFIGDIR": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None}
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}", tmp_path, **homeless)
    assert (done.returncode, done.stderr) == (0, "")
