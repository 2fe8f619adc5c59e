"""Signals as a process meets them: work without a check, a second signal, forked children, unfinished files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from simclr_lightning import files
from simclr_lightning.cli.guard import guard
from simclr_lightning.stopping import STOP, check
def ready(): print("ready", flush=True)
"""
DEAF = """
def work():
    with files.whole(Path("file")) as fresh, files.together(Path("new/folder"), "group") as folder:
        fresh.write_text("half")
        (folder / "a").write_text("half")
        ready()
        try: time.sleep(60)
        except BaseException: Path("raised").touch()
sys.exit(guard(work))
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + code], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("signum", "says"), [(signal.SIGTERM, "\nstopped by SIGTERM\n"), (signal.SIGINT, "\ninterrupted\n")]
)
def test_work_without_a_check_is_ended_without_an_exception_and_leaves_no_file(
    signum: signal.Signals, says: str, tmp_path: Path
) -> None:
    process = start(DEAF, tmp_path)
    before = time.monotonic()
    process.send_signal(signum)
    assert end(process) == (128 + signum, says)
    assert 3 < time.monotonic() - before < 20
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_ends_at_once_and_two_at_the_same_time_are_one(tmp_path: Path) -> None:
    process = start(DEAF.replace("guard(work)", "guard(lambda: [STOP.wait_for_check(1e9), work()])"), tmp_path)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(5.5)
    process.send_signal(signal.SIGINT)
    assert end(process) == (143, "\nstopped by SIGTERM\n")  # by the first
    assert list(tmp_path.iterdir()) == []


def test_a_signal_to_a_forked_child_is_none_to_its_parent(tmp_path: Path) -> None:
    code = """
def work():
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    ready()
    os.kill(child, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    time.sleep(0.5)
    check()
    return -code
sys.exit(guard(work))
"""
    assert end(start(code, tmp_path)) == (signal.SIGTERM, "")


def test_what_is_to_be_done_last_is_done_once_and_cannot_hang_the_end(tmp_path: Path) -> None:
    code = """
def last(signum):
    with open("last", "a") as file: file.write(f"{signum}\\n")
    time.sleep(60)
def work():
    STOP.last = last
    ready()
    time.sleep(60)
sys.exit(guard(work))
"""
    process = start(code, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert end(process) == (143, "")
    assert (tmp_path / "last").read_text() == "15\n"


def test_no_handler_is_installed_by_the_import(tmp_path: Path) -> None:
    process = start("ready(); time.sleep(60)", tmp_path)
    os.kill(process.pid, signal.SIGTERM)
    assert end(process)[0] == -signal.SIGTERM
