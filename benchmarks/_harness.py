"""What all benchmark scripts share: options, clocks, the description of the machine, tables and the JSON file.

A script builds its parser with `arguments` and reads it with `parse`, measures with `alternate` or `timed`, and ends
with `table` and `write`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
K = TypeVar("K")
Run = Callable[[], object]
CPU = torch.device("cpu")

# ---------------------------------------------------------------- options


def arguments(script: str, doc: str | None, *, threads: int | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options of every script: --quick, --threads and --out.

    The default number of threads is torch's own, which follows OMP_NUM_THREADS.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="show in seconds that the script works, at tiny sizes")
    parser.add_argument("--threads", type=int, default=threads or torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--out", "--output", type=Path, help="the JSON file; by default none with --quick")
    parser.set_defaults(json=Path(script).resolve().with_suffix(".json"))
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and set torch's number of threads."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def left_out(what: str, error: Exception) -> None:
    """Print to stderr that one part is missing from the results, and why."""
    print(f"{what} left out: {type(error).__name__}: {error}", file=sys.stderr)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Ignore warnings, and print nothing of Lightning's but errors."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---------------------------------------------------------------- clocks


@dataclass(frozen=True)
class Took(Generic[T]):
    """A call's result, its wall-clock seconds, and the CPU seconds of this process and its children."""

    result: T
    seconds: float
    cpu_seconds: float


def now(device: torch.device) -> float:
    """Return a clock's seconds once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(run: Callable[[], T], device: torch.device = CPU) -> Took[T]:
    """Call ``run`` once, and wait for ``device`` before and after it."""
    children, own, start = children_cpu_seconds(), time.process_time(), now(device)
    result = run()
    end, own = now(device), time.process_time() - own
    return Took(result, end - start, own + children_cpu_seconds() - children)


def seconds(run: Run, device: torch.device = CPU) -> float:
    """Return the wall-clock seconds of one call."""
    return timed(run, device).seconds


def cpu_seconds(run: Run) -> float:
    """Return the CPU seconds of one call, which other work on the machine hardly changes."""
    return timed(run).cpu_seconds


def alternate(runs: Mapping[K, Run], turns: int, clock: Callable[[Run], float] = seconds) -> dict[K, list[float]]:
    """Time all runs once a turn, so that a busy moment hits all of them; one more turn at the start warms up."""
    found: dict[K, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            took = clock(run)
            if turn:
                found[name].append(took)
    return found


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the turns of ``times / others``, each pair from the same turn."""
    return statistics.median(time / other for time, other in zip(times, others, strict=True))


def children_cpu_seconds() -> float:
    """Return the CPU seconds of all child processes: of the ended ones and, on Linux, of the running ones."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(map(_cpu_seconds_of, _descendants(os.getpid())))


def _descendants(pid: int) -> Iterator[int]:
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            for child in map(int, listing.read_text().split()):
                yield child
                yield from _descendants(child)


def _cpu_seconds_of(pid: int) -> float:
    """Return utime, stime, cutime and cstime of /proc/PID/stat in seconds; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def cuda_peak_bytes(run: Run, device: torch.device) -> int:
    """Return the most bytes that CUDA's allocator holds during ``run`` beyond those it held before."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


# ---------------------------------------------------------------- machine


def processor() -> str:
    """Return the processor's name from /proc/cpuinfo."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def machine(*packages: str) -> dict[str, Any]:
    """Return date, processor, cores, load, Python's version and those of the packages that are installed."""
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in packages if name in installed},
    }


# ---------------------------------------------------------------- results


def table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table from each column's title and format string, such as ``{"MB": "{peak_mb:.1f}"}``.

    A cell is empty where a row has no such key, or None under a key that is formatted as a number.
    """
    return markdown(list(columns), ([_cell(form, row) for form in columns.values()] for row in rows))


def _cell(form: str, row: Mapping[str, Any]) -> str:
    try:
        return form.format_map(row)
    except (KeyError, TypeError):
        return ""


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of ready cells."""
    lines = ("| " + " | ".join(cells) + " |" for cells in rows)
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines])


def write(options: argparse.Namespace, *packages: str, **found: Any) -> None:
    """Write the machine's description and ``found`` to --out, or to the script's own JSON file without --quick."""
    path = options.out or (None if options.quick else options.json)
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {**machine(*packages), "threads": options.threads}
    path.write_text(json.dumps({**head, **found}, indent=1) + "\n")
    print(f"written to {path}")
