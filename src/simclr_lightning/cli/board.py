"""What a user sees of a sweep: a live table of its jobs on a terminal, a line for every start and end elsewhere."""

from __future__ import annotations

import csv
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import yaml
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simclr_lightning.cli.sweep import OUTPUT, Job

SECONDS_BETWEEN_READS = 1.0
_TAIL = 1 << 16  # bytes of a log that are looked at
_TOTAL = re.compile(r"step \d+/(\d+)|, (\d+) steps$", re.MULTILINE)
_ORDER = ("running", "failed", "finished", "finished before", "waiting")
_LINES_AROUND = 8  # of the terminal, that the table leaves free


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimiser steps done, as of the last row of its metrics.
        total: of so many; None before it is known.
        score: the latest score on the held-out part of train that ``select`` names, higher is better.
    """

    step: int = 0
    total: int | None = None
    score: float | None = None


def read_progress(folder: Path) -> Progress:
    """Read a run's progress from metrics.csv, train.log and its configuration; what cannot be read is left out."""
    from simclr_lightning.callbacks import selected

    totals = _TOTAL.findall(_tail(folder / "train.log"))
    total = int("".join(totals[-1])) if totals else None
    step, online = 0, dict[str, float]()
    for row in _rows(folder / "metrics.csv"):
        step = int(row["step"] or 0)
        online |= {name[7:]: float(row[name]) for name in row if name and name.startswith("online/") and row[name]}
    return Progress(step, total, selected(online, _select(folder)) if online else None)


def shown_score(score: float | None) -> str:
    """A score as a reader expects it: a share in per cent, a loss as it is."""
    return "" if score is None else f"{score:.1%}" if 0 <= score <= 1 else f"{abs(score):.3f}"


def _select(folder: Path) -> str:
    """What ``select`` is in a run's saved configuration."""
    try:
        saved = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text("utf-8"))
        return str(saved["select"])
    except (OSError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError):
        return "auto"


def shown_time(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def said_error(folder: Path) -> str:
    """The message that a failed job printed last, or the end of its output."""
    lines = [line for line in _tail(folder / OUTPUT).splitlines() if line.strip()]
    starts = [place for place, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[starts[-1] :][:5] if starts else lines[-3:])


class Board:
    """The jobs of a sweep with their progress, time left and score, and the best so far.

    Args:
        jobs: all of them, those that are finished before included.
        console: where to draw.
    """

    def __init__(self, jobs: Sequence[Job], console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.jobs = {job.number: job for job in jobs}
        self.state = {job.number: "finished before" if job.finished else "waiting" for job in jobs}
        self.progress = {job.number: read_progress(job.folder) for job in jobs}
        self.began: dict[int, float] = {}
        self.marks: dict[int, tuple[float, int]] = {}  # when a job was first seen to advance, and its step then
        self.seconds: list[float] = []  # of the jobs that finished here
        self.read = 0.0
        self.live: Live | None = None

    def __enter__(self) -> Board:
        for job in self.jobs.values():
            if job.finished:
                self.console.print(f"{job.title}: finished before", markup=False)
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
            self.console.print(self.table(rows=len(self.jobs)))
        elif kind is None:
            self.console.print(self.line(), markup=False)

    def started(self, job: Job) -> None:
        """Say that a job starts."""
        self.state[job.number] = "running"
        self.began[job.number] = time.monotonic()
        if self.live is None:
            self.console.print(job.title, markup=False)

    def ended(self, job: Job, code: int) -> None:
        """Say what became of a job."""
        self.progress[job.number] = read_progress(job.folder)
        self.state[job.number] = "failed" if code else "finished"
        seconds = time.monotonic() - self.began[job.number]
        if code == 0:
            self.seconds.append(seconds)
            if self.live is None:
                score = shown_score(self.progress[job.number].score)
                said = ", ".join(part for part in ("finished", score, shown_time(seconds)) if part)
                self.console.print(f"{job.title}: {said}; {self.line()}", markup=False)
            return
        why = f"killed by {signal.Signals(code - 128).name}" if code - 128 in set(signal.Signals) else f"exit {code}"
        # The live table must move out of the way, which only its own console does.
        target = self.console if self.live is not None else Console(file=sys.stderr, highlight=False, soft_wrap=True)
        target.print(f"{job.title}: failed ({why})\n{said_error(job.folder)}", markup=False)

    def look(self) -> None:
        """Read the progress of what runs, once a second, and draw."""
        if time.monotonic() - self.read < SECONDS_BETWEEN_READS:
            return
        self.read = time.monotonic()
        for number, state in self.state.items():
            if state == "running":
                self.progress[number] = found = read_progress(self.jobs[number].folder)
                if found.step:
                    self.marks.setdefault(number, (self.read, found.step))
        if self.live is not None:
            self.live.update(self.table(rows=max(4, self.console.height - _LINES_AROUND)), refresh=True)

    def best(self) -> Job | None:
        """The job with the best score on the held-out part of train so far."""
        scores = {number: found.score for number, found in self.progress.items() if found.score is not None}
        return self.jobs[max(scores, key=scores.__getitem__)] if scores else None

    def line(self) -> str:
        """How the sweep stands, in one line."""
        counts = Counter(self.state.values())
        done = counts["finished"] + counts["finished before"]
        parts = [f"{done} of {len(self.jobs)} finished"]
        if counts["failed"]:
            parts.append(f"{counts['failed']} failed")
        left = self.time_left()
        if left:
            parts.append(f"about {shown_time(left)} left")
        best = self.best()
        if best is not None:
            parts.append(f"best: {best.title} {shown_score(self.progress[best.number].score)} on held-out train images")
        return ", ".join(parts)

    def time_left(self) -> float | None:
        """Seconds until the last job ends, by those that finished here; None before the first did."""
        counts = Counter(self.state.values())
        if not self.seconds:
            return None
        mean, at_once = sum(self.seconds) / len(self.seconds), max(counts["running"], 1)
        running = [self._left(number) for number, state in self.state.items() if state == "running"]
        return mean * counts["waiting"] / at_once + max((mean if left is None else left for left in running), default=0)

    def table(self, *, rows: int) -> RenderableType:
        """The jobs as a table: those that run first, at most ``rows`` of them."""
        table = Table(box=None, pad_edge=False)
        for name, justify in (
            ("job", "left"),
            ("state", "left"),
            ("steps", "right"),
            ("left", "right"),
            ("score", "right"),
        ):
            table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
        order = sorted(self.jobs, key=lambda number: (_ORDER.index(self.state[number]), -self._score(number), number))
        for number in order[:rows]:
            found, state = self.progress[number], self.state[number]
            steps = f"{found.step}/{found.total or '?'}" if found.step else ""
            left = shown_time(self._left(number)) if state == "running" else ""
            table.add_row(Text(self.jobs[number].title), state, steps, left, shown_score(found.score))
        more = Text(f"and {len(order) - rows} more") if len(order) > rows else Text("")
        return Group(table, more, Text(self.line()))

    def _score(self, number: int) -> float:
        score = self.progress[number].score
        return float("-inf") if score is None else score

    def _left(self, number: int) -> float | None:
        found, mark = self.progress[number], self.marks.get(number)
        if mark is None or found.total is None or found.step <= mark[1]:
            return None
        return (time.monotonic() - mark[0]) / (found.step - mark[1]) * (found.total - found.step)


def _rows(path: Path) -> list[dict[str, str]]:
    """The header's row names with the last rows of a CSV file."""
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline()
    except OSError:
        return []
    lines = _tail(path).splitlines()[1:]  # the header, or a torn line
    rows = [row for row in csv.DictReader([header, *lines]) if (row["step"] or "").isdigit()]
    return [row for row in rows if None not in row and None not in row.values()]  # the last may be half written


def _tail(path: Path) -> str:
    """The end of a file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
