"""A progress bar on the terminal for work on many files."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simclr_lightning.stopping import check


@contextmanager
def counted(what: str, *, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while the body runs, and remove it afterwards; without a total, show a count.

    Nothing is shown where stderr is not a terminal, nor on ranks other than the first.

    Args:
        what: the text before the bar.
        unit: the name of what is counted, such as "images".
        total: their number, if it is known.

    Yields:
        A function to call with the number of further units done. It raises `Stopped` if a signal has come.
    """
    # Images are listed before a process group exists, so the rank comes from the launcher's variable.
    if os.environ.get("RANK", "0") != "0" or sys.stderr is None or not sys.stderr.isatty():
        yield lambda done: check()
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

        def report(done: int) -> None:
            progress.advance(task, done)
            check()

        yield report
