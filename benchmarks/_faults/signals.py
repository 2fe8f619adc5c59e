"""SIGTERM and Ctrl-C at any moment of a run, from the imports to its last line."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _faults.child import LONGEST, SMALL, Child, Failures, array_file, program
from _harness import children_cpu_seconds
from simclr_lightning.cli import main as simclr

MOST_CPU_SECONDS = 10.0  # of a process, from the first signal to its end
DEVICES = (1, 2)
RESUMED = 10  # one run in so many goes on with the line that it printed
_LINE = re.compile(
    r"^  (?!resume ).*(?:train\.py|simclr train|simclr_lightning\.cli train) (ckpt_path=.*)$", re.MULTILINE
)


@dataclass(frozen=True)
class Moment:
    """When and how a run is stopped.

    Attributes:
        devices: of the run.
        forked: whether the run is a fork of this process, which has done the imports.
        signum: the signal.
        again: seconds until a second one; None: none comes.
        at: CPU seconds of the run at the first signal.
    """

    devices: int
    forked: bool
    signum: signal.Signals
    again: float | None
    at: float


class Forked(Child):
    """A forked run with the methods of subprocess.Popen: it imports nothing."""

    returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        if self.returncode is None and self._ended():
            self.returncode = self._code
        return self.returncode

    def wait(self, timeout: float = LONGEST) -> int:
        """Return the exit code once there is one."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("simclr", timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, as to a process that may have ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)


def signals(trials: int, folder: Path, devices: tuple[int, ...] = DEVICES) -> Failures:
    """Stop runs at random moments: each must exit with 143 or 130, soon, with a true summary and a line that works."""
    rng, words = random.Random(2), (*SMALL, f"data.path={array_file(folder)}")
    kinds = [(count, forked) for count in devices for forked in ((False,) if count > 1 else (False, True))]
    lengths = {kind: _length(words, *kind, folder) for kind in kinds}
    for trial in range(trials):
        count = devices[trial % len(devices)]
        forked = count == 1 and trial // len(devices) % 3 > 0
        moment = Moment(
            count,
            forked,
            signal.SIGTERM if trial // len(devices) % 2 else signal.SIGINT,
            rng.uniform(0, 2) if trial // len(devices) % 4 > 1 else None,
            lengths[count, forked] * 1.02 * (trial + rng.random()) / trials,
        )
        run = folder / f"run{trial}"
        for failure in _stopped(moment, words, run, resume=trial % RESUMED < len(devices)):
            yield f"signals {trial}: {moment}: {failure}"
        shutil.rmtree(run, ignore_errors=True)


def _start(
    words: tuple[str, ...], run: Path, devices: int, forked: bool, output: Path
) -> subprocess.Popen[bytes] | Forked:
    command = ["train", *words, f"trainer.devices={devices}", f"hydra.run.dir={run}"]
    if forked:
        return Forked(lambda: simclr(command, ends=True), output)
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "simclr_lightning.cli", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A shell's background jobs ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def _length(words: tuple[str, ...], devices: int, forked: bool, folder: Path) -> float:
    """Return the CPU seconds of a whole run."""
    before = children_cpu_seconds()
    run = folder / f"whole{devices}{forked}"
    assert _start(words, run, devices, forked, folder / "output").wait() == 0, (folder / "output").read_text()
    return children_cpu_seconds() - before


def _stopped(moment: Moment, words: tuple[str, ...], run: Path, *, resume: bool) -> Failures:
    output, before = run.parent / "output", children_cpu_seconds()
    process = _start(words, run, moment.devices, moment.forked, output)
    while children_cpu_seconds() - before < moment.at and process.poll() is None:
        time.sleep(0.005)
    at_signal = children_cpu_seconds()
    process.send_signal(moment.signum)
    try:
        if moment.again is not None:
            try:
                process.wait(moment.again)
            except subprocess.TimeoutExpired:
                process.send_signal(moment.signum)
        code = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        yield f"no end after {LONGEST} s"
        return
    took, text = children_cpu_seconds() - at_signal, output.read_text(errors="replace")
    summary = run / "summary.json"
    status = json.loads(summary.read_text())["status"] if summary.exists() else None
    print(f"  {moment}: exit {code}, {status}, {took:.1f} s CPU, {text.strip().splitlines()[-1:]}", file=sys.stderr)
    if code != (0 if status == "finished" else 128 + moment.signum):
        yield f"exit {code}, status {status}: {text[-300:]}"
    if status not in ("stopped", "finished") and (status or (run / "train.log").exists()):
        yield f"status {status}"
    if "unexpected" in text or "Traceback" in text:
        yield text[-600:]
    if took > MOST_CPU_SECONDS * moment.devices:
        yield f"{took:.1f} CPU seconds after the signal"
    if left := [path.name for path in run.rglob(".*.tmp")]:
        yield f"left behind: {left}"
    printed = _LINE.search(text)
    if (status == "stopped") != (printed is not None or "before the first checkpoint" in text):
        yield f"status {status}, and no line how to go on: {text[-300:]}"
    if printed and resume and status == "stopped":
        yield from _resumed(shlex.split(printed[1]), run, output)


def _resumed(words: list[str], run: Path, output: Path) -> Failures:
    child = Child(program("train", *words), output)
    code, status = child.code(), json.loads((run / "summary.json").read_text())["status"]
    if (code, status) != (0, "finished"):
        yield f"resumed by {words}: exit {code}, {status}: {child.message()}"
