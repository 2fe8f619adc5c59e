"""Show a sweep: on a terminal a live table of the jobs, elsewhere a line for every start and end of a job."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simclr_lightning import text
from simclr_lightning.app.launch.jobs import Job
from simclr_lightning.run_folder import error_of, last_output, read_progress

SECONDS_BETWEEN_READS = 1.0
_ORDER = ("running", "failed", "finished", "finished before", "waiting")
_LINES_AROUND = 8  # lines of the terminal that the table leaves free


class Dashboard:
    """Show the jobs of a sweep with their progress, time left and score, and the best job so far.

    Args:
        jobs: all jobs of the sweep, with those that an earlier start has finished.
        console: the console to draw on; None: stdout.
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

    def __enter__(self) -> Dashboard:
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
        """Note that a job starts, and print it."""
        self.state[job.number] = "running"
        self.began[job.number] = time.monotonic()
        if self.live is None:
            self.console.print(job.title, markup=False)

    def ended(self, job: Job, code: int) -> None:
        """Note how a job ended, and print it with the reason of a failure."""
        self.progress[job.number] = read_progress(job.folder)
        self.state[job.number] = "failed" if code else "finished"
        seconds = time.monotonic() - self.began[job.number]
        if code == 0:
            self.seconds.append(seconds)
            if self.live is None:
                score = text.score(self.progress[job.number].score)
                said = ", ".join(part for part in ("finished", score, text.duration(seconds)) if part)
                self.console.print(f"{job.title}: {said}; {self.line()}", markup=False)
            return
        why = f"killed by {signal.Signals(code - 128).name}" if code - 128 in set(signal.Signals) else f"exit {code}"
        # Only the console of the live table can print above it.
        target = self.console if self.live is not None else Console(file=sys.stderr, highlight=False, soft_wrap=True)
        target.print(
            f"{job.title}: failed ({why})\n{chr(10).join(error_of(job.folder) or last_output(job.folder))}",
            markup=False,
        )

    def look(self) -> None:
        """Read the progress of the running jobs, once a second, and draw the table."""
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
        """Return the job with the best score on the held-out part of train so far."""
        scores = {number: found.score for number, found in self.progress.items() if found.score is not None}
        return self.jobs[max(scores, key=scores.__getitem__)] if scores else None

    def line(self) -> str:
        """Return the state of the sweep in one line."""
        counts = Counter(self.state.values())
        done = counts["finished"] + counts["finished before"]
        parts = [f"{done} of {len(self.jobs)} finished"]
        if counts["failed"]:
            parts.append(f"{counts['failed']} failed")
        left = self.time_left()
        if left:
            parts.append(f"about {text.duration(left)} left")
        best = self.best()
        if best is not None:
            parts.append(f"best: {best.title} {text.score(self.progress[best.number].score)} on held-out train images")
        return ", ".join(parts)

    def time_left(self) -> float | None:
        """Return the seconds until the last job ends, by the mean of the finished jobs; None without a finished job."""
        counts = Counter(self.state.values())
        if not self.seconds:
            return None
        mean, at_once = sum(self.seconds) / len(self.seconds), max(counts["running"], 1)
        running = [self._left(number) for number, state in self.state.items() if state == "running"]
        return mean * counts["waiting"] / at_once + max((mean if left is None else left for left in running), default=0)

    def table(self, *, rows: int) -> RenderableType:
        """Return the jobs as a table, running ones first, at most ``rows`` of them."""
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
            left = text.duration(self._left(number)) if state == "running" else ""
            table.add_row(Text(self.jobs[number].title), state, steps, left, text.score(found.score))
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
