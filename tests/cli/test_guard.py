"""A command in the terminal: its exit code, at most five lines on stderr, and a traceback only with debug=true."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simclr_lightning import files
from simclr_lightning.app.errors import LINES, UserError, mistake
from simclr_lightning.cli import main
from simclr_lightning.cli.guard import guard
from simclr_lightning.stopping import check


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert 1 <= len(captured.err.splitlines()) <= LINES
    return captured.err


def test_a_command_returns_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert [guard(lambda: 0), guard(lambda: 3)] == [0, 3]
    assert capsys.readouterr() == ("", "")


def test_user_errors_are_their_message_and_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(raising(UserError("no such run\ngive another"))) == 1
    assert said(capsys) == "error: no such run\ngive another\n"
    assert guard(raising(mistake("seed=-1"))) == 2
    assert said(capsys) == "error: seed=-1\n"


def test_debug_prints_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(raising(KeyError("x")), debug=True) == 1
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text
    assert text.endswith("error: unexpected KeyError: 'x'\n")


def test_the_traceback_is_written_to_the_runs_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").write_text("epoch 1\n")
    for log in (tmp_path, tmp_path / "train.log"):
        assert guard(raising(KeyError("x")), log=lambda log=log: log) == 1  # type: ignore[misc]
        assert str(tmp_path / "train.log") in said(capsys)
    text = (tmp_path / "train.log").read_text()
    assert text.startswith("epoch 1\n")
    assert text.count("Traceback (most recent call last)") == 2
    assert text.rstrip().endswith("KeyError: 'x'")


def test_a_log_that_cannot_be_written_hides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(raising(KeyError("x")), log=lambda: tmp_path / "gone" / "train.log") == 1
    assert "debug=true" in said(capsys)


def test_expected_errors_leave_the_log_alone(tmp_path: Path) -> None:
    guard(raising(UserError("known")), log=lambda: tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_interrupts_and_exits() -> None:
    assert guard(raising(KeyboardInterrupt())) == 130
    with pytest.raises(SystemExit) as stop:
        guard(raising(SystemExit(7)))
    assert stop.value.code == 7


def test_a_signal_ends_a_command_at_its_next_check_and_not_before(tmp_path: Path) -> None:
    under_way = []

    def work() -> int:
        with files.whole(tmp_path / "out") as fresh:
            fresh.write_text("half")
            signal.raise_signal(signal.SIGTERM)
            under_way.append("ended in peace")
            check()
        return 0

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (guard(work), under_way) == (143, ["ended in peace"])
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    check()  # the signal is forgotten


def test_an_error_after_a_signal_is_the_signals(capsys: pytest.CaptureFixture[str]) -> None:
    def with_workers() -> int:
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("a worker, which the signal reached too, is gone")

    assert guard(lambda: guard(with_workers)) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_command_that_has_done_its_work_when_the_signal_comes_has_succeeded() -> None:
    assert guard(lambda: signal.raise_signal(signal.SIGTERM) or 0) == 0  # type: ignore[func-returns-value]


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert guard(lambda: int(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is /dev/full, on Linux")
def test_printing_to_a_full_disk_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (lambda: guard(lambda: print("the table") or 0), lambda: main(["export", "--help"])):  # type: ignore[func-returns-value]
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert command() == 1
        assert "the disk is full" in capsys.readouterr().err


def test_names_that_the_terminal_cannot_encode_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["--help"]) == 0
    print("caf\u00e9 \udcff", flush=True)
    assert terminal.buffer.getvalue().endswith(b"caf\\xe9 \\udcff\n")  # type: ignore[attr-defined]


def test_the_internal_command_rank_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank"]) == 2
    assert "trainer.devices" in said(capsys)
    assert main(["embed", "run", "", "out.npz"]) == 2
    assert "an empty argument" in said(capsys)


def test_a_closed_pipe_prints_nothing() -> None:
    code = (
        "import sys\n"
        "from simclr_lightning.cli.guard import guard\n"
        "def late(): print('buffered'); sys.stdin.read(); raise BrokenPipeError\n"
        "sys.exit(guard(late))"
    )
    pipe, env = subprocess.PIPE, {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
        assert (process.wait(timeout=60), said) == (141, b"")
