"""Read what this process may use of the machine, CPU cores and memory, and set how it uses them.

A container's limits are those of its Linux control groups, version 1 and 2, and of the groups above. ``root`` is the
root of the file system everywhere: the tests make one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
# Of a control group, version 2 and 1: the files with its memory limit and use; the row of files that are only cached.
_MEMORY: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)

# Options of glibc's mallopt, numbered as in malloc.h. Setting one also ends glibc's own adaptation of them.
_MALLOPT: Final = {
    -3: 32 << 20,  # M_MMAP_THRESHOLD: larger blocks are mapped by themselves, and returned when freed
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: free bytes at the heap's end, above which they are returned
    -2: 64 << 20,  # M_TOP_PAD: bytes that the heap grows by
}


def cores(root: Path = ROOT) -> int:
    """Return the number of CPU cores that this process may use, at least 1.

    This is the smallest of the machine's cores, the process's affinity (``taskset``, SLURM) and the time that a
    container may use (``docker run --cpus``, rounded down).
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder))]
    return max(1, int(min([there, *quotas])))


def memory(root: Path = ROOT) -> int:
    """Return the memory in bytes that this process may use: the machine's, or its container's limit if lower."""
    limits = [limit for limit, _ in _limits(root)]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def free_memory(root: Path = ROOT) -> int:
    """Return the bytes of memory that this process can still take without swapping, at least 0.

    Where the system does not count them (other than Linux), half of the memory counts as free.
    """
    table = _lines(root / "proc/meminfo")
    free = next((int(line.split()[1]) * 1024 for line in table if line.startswith("MemAvailable")), memory(root) // 2)
    return max(0, min([free, *(limit - used for limit, used in _limits(root))]))


def limit_threads() -> None:
    """Let torch use as many threads as `cores`, unless OMP_NUM_THREADS is set: torch knows no container's limit."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def is_busy(root: Path = ROOT) -> bool:
    """Return whether other programs use cores that this process would use, or a container limits its CPU time.

    The load is the average of the last minute, over the whole machine.
    """
    if any(_quota(folder) for folder in _groups(root, "cpu")):
        return True
    return hasattr(os, "getloadavg") and (os.cpu_count() or 1) - round(os.getloadavg()[0]) < cores(root)


def wait_passively() -> None:
    """On a busy machine, let OpenMP's threads sleep while they wait for each other; call it before torch is imported.

    By default they spin: a thread that waits uses the core that the other one needs, and a step becomes many times
    slower. Results are the same, since the number of threads is. OMP_WAIT_POLICY, if set, is left as it is.
    """
    if "OMP_WAIT_POLICY" not in os.environ and os.environ.get("OMP_NUM_THREADS") != "1" and is_busy():
        os.environ["OMP_WAIT_POLICY"] = "passive"


def keep_pages() -> bool:
    """Let this process keep the memory that it frees, for its next allocation; return whether that is possible.

    By default, glibc returns each freed block above a limit to the system. Every training step on a CPU then requests
    its activations again, and the system fills all their pages with zeros: a quarter to a third of the step. After
    this call, blocks below 32 MB (the highest limit that glibc accepts) stay in the process. Results do not change,
    and the peak memory rises by about a tenth. Call it before the first batch, for example at the start of a notebook.

    Returns:
        False if the C library is not glibc (macOS, musl) or refuses; nothing has changed then.
    """
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}) or not os.confstr("CS_GNU_LIBC_VERSION"):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in _MALLOPT.items())


def _quota(folder: Path) -> float | None:
    """Return the cores that a control group may use; None: it has no limit."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    words = words or [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):  # "max", or -1
        return None
    return int(words[0]) / int(words[1])


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use in bytes of every control group of this process that has a limit."""
    for folder in _groups(root, "memory"):
        for limit, used, cache in _MEMORY:
            first, second = _lines(folder / limit), _lines(folder / used)
            if first and second and first[0].isdigit() and second[0].isdigit():
                freed = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == cache]
                yield int(first[0]), max(0, int(second[0]) - sum(freed))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group with a controller, and of the groups above it."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            places = [mount, mount / "unified"]
        elif controller in names.split(","):
            places = [mount / names, mount / controller]
        else:
            continue
        # Inside a container the path may be the host's, which is not there: then the mount is the container's group.
        group = Path(path.lstrip("/"))
        for place in places:
            yield from (place / part for part in (group, *group.parents) if (place / part).is_dir())


def _lines(file: Path) -> list[str]:
    """Return the lines of a file of the kernel that are not blank; none when it cannot be read."""
    try:
        return [line for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return []
