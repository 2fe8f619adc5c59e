"""Cores and memory follow the limits of a container: trees of files as Linux's control groups show them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_lightning import machine

GB = 1 << 30


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 cores and 64 GB, 40 of them free, without a control group."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GB // 4096}.__getitem__)
    write(tmp_path, "proc/meminfo", f"MemTotal: {64 * GB // 1024} kB\nMemAvailable: {40 * GB // 1024} kB\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def found(root: Path) -> tuple[int, int, int]:
    return machine.cores(root), machine.memory(root) // GB, machine.free_memory(root) // GB


def test_without_a_limit_it_is_the_machine(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(tree) == (16, 64, 40)
    (tree / "proc/meminfo").unlink()  # another system
    assert machine.free_memory(tree) == 32 * GB
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores(tree) == 1


def test_version_2_in_a_container_whose_group_is_the_mount(tree: Path) -> None:
    write(tree, "proc/self/cgroup", "0::/\n")
    write(tree, "sys/fs/cgroup/cpu.max", "250000 100000\n")
    write(tree, "sys/fs/cgroup/memory.max", f"{8 * GB}\n")
    write(tree, "sys/fs/cgroup/memory.current", f"{6 * GB}\n")
    assert found(tree) == (2, 8, 2)
    write(tree, "sys/fs/cgroup/memory.stat", f"anon 5\nactive_file {GB}\ninactive_file {3 * GB}\n")  # cached files
    assert found(tree) == (2, 8, 5)
    write(tree, "sys/fs/cgroup/cpu.max", "20000 100000\n")  # a fifth of a core
    write(tree, "sys/fs/cgroup/memory.current", f"{12 * GB}\n")  # the limit was lowered
    assert found(tree) == (1, 8, 0)


def test_version_2_takes_the_lowest_limit_of_the_groups_above(tree: Path) -> None:
    write(tree, "proc/self/cgroup", "0::/system.slice/job\n")
    for group, cpu, memory in (("job", "max 100000", "max"), ("", "400000 100000", str(16 * GB))):
        write(tree, f"sys/fs/cgroup/system.slice/{group}/cpu.max", cpu)
        write(tree, f"sys/fs/cgroup/system.slice/{group}/memory.max", memory)
        write(tree, f"sys/fs/cgroup/system.slice/{group}/memory.current", str(GB))
    assert found(tree) == (4, 16, 15)


def test_version_1_and_a_path_of_the_host_that_the_container_does_not_see(tree: Path) -> None:
    write(tree, "proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n")
    write(tree, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n")
    write(tree, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(tree, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{4 * GB}\n")
    write(tree, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{3 * GB}\n")
    write(tree, "sys/fs/cgroup/memory/memory.stat", f"inactive_file 0\ntotal_inactive_file {GB}\n")
    assert found(tree) == (3, 4, 2)


def test_version_1_without_limits(tree: Path) -> None:
    write(tree, "proc/self/cgroup", "4:memory:/a\n3:cpu:/a\n0::/a\n")
    write(tree, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tree, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(tree, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tree, "sys/fs/cgroup/memory/memory.usage_in_bytes", "1000\n")
    assert found(tree) == (16, 64, 40)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_a_process_that_is_tied_to_one_core_has_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from simclr_lightning import machine; print(machine.cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_torch_gets_as_many_threads_as_there_are_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(machine, "cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.limit_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    machine.limit_threads()
    assert asked == [3]


FAULTS_OF_THE_SECOND_BLOCK = """
import resource
from simclr_lightning import machine
print(machine.keep_pages() if {keep} else None)
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * (24 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
@pytest.mark.parametrize("keep", [False, True])
def test_pages_that_are_kept_do_not_fault_again(keep: bool) -> None:  # in a new process: an allocator has no way back
    code = FAULTS_OF_THE_SECOND_BLOCK.format(keep=keep)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    pages = (24 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert printed[0] == str(keep or None)
    assert int(printed[1]) < pages / 20 if keep else int(printed[1]) > pages / 2


def test_pages_cannot_be_kept_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr_names", {"CS_PATH": 0})
    assert machine.keep_pages() is False


def test_threads_sleep_while_they_wait_if_the_machine_is_busy(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = [0.4]
    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert not machine.is_busy(tree)
    load[0] = 1.2
    assert machine.is_busy(tree)  # 15 of 16 cores are free, and this process may use all
    load[0] = 0.0
    write(tree, "proc/self/cgroup", "0::/\n")
    write(tree, "sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert machine.is_busy(tree)  # the container's time ends sooner if threads spin

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setattr(machine, "is_busy", lambda: True)
    machine.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine.wait_passively()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    machine.wait_passively()
    assert os.environ.pop("OMP_WAIT_POLICY") == "passive"
