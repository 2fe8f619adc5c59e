"""How far a long piece of work has come, for whoever waits at a terminal."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted(what: str, *, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar, or without a total a count, on stderr while the body runs; it is gone afterwards.

    Nothing is shown where stderr is no terminal, nor on ranks other than the first.

    Args:
        what: the work.
        unit: what is counted.
        total: how many there are.

    Yields:
        What to tell of so many more done.
    """
    # The images are listed before a process group exists: the launchers' variable tells the rank.
    if os.environ.get("RANK", "0") != "0" or sys.stderr is None or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    count = "{task.completed:,}" + ("" if total is None else " of {task.total:,}") + f" {unit}"
    columns = [TextColumn("{task.description}", markup=False), TextColumn(count), TimeElapsedColumn()]
    if total is not None:
        columns[1:1] = [BarColumn()]
        columns += [TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
