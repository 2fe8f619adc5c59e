"""The arithmetic of the benchmarks: their numbers follow from their measurements."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import torch

import _harness as harness
import gpu
import scaling
import step

MACHINE = scaling.Machine(pairs_per_second=1000, measured=False)
NETWORK = scaling.resnet50()


def test_a_ratio_compares_the_times_of_the_same_turn() -> None:
    """A machine that is busy for one turn slows both sides of it, and changes nothing."""
    assert harness.ratio([0.9, 0.9, 0.9], [1.0, 1.0, 1.0]) == 0.9
    assert harness.ratio([0.9, 6.3, 0.9], [1.0, 7.0, 1.0]) == pytest.approx(0.9)


def test_runs_alternate_and_the_first_turn_is_not_counted() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}

    def clock(run: harness.Run) -> float:
        run()
        return float(len(calls))

    assert harness.alternate(runs, 2, clock) == {"a": [3, 5], "b": [4, 6]}
    assert "".join(calls) == "ababab"


SPIN = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"


def test_cpu_seconds_include_a_running_and_an_ended_child() -> None:
    child = subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    before = harness.children_cpu_seconds()
    took = harness.timed(lambda: child.stdout.readline())
    assert took.cpu_seconds == pytest.approx(0.4, abs=0.15)
    ended = harness.cpu_seconds(lambda: child.communicate(b"\n"))
    assert ended < 0.2
    assert harness.children_cpu_seconds() - before == pytest.approx(0.4, abs=0.2)


def test_a_table_leaves_missing_values_empty() -> None:
    columns = {"task": "{task}", "MB": "{peak_mb:.1f}", "share": "{split[loss]:.0%}"}
    rows = [{"task": "a", "peak_mb": 2, "split": {"loss": 0.25}}, {"task": "b", "peak_mb": None}]
    assert harness.table(columns, rows) == "| task | MB | share |\n|---|---|---|\n| a | 2.0 | 25% |\n| b |  |  |"


def test_a_quick_run_writes_no_file_unless_asked(tmp_path: Path) -> None:
    options = Namespace(out=None, quick=True, json=tmp_path / "script.json", threads=3)
    harness.write(options, rows=[1])
    assert not list(tmp_path.iterdir())
    options.quick = False
    harness.write(options, "torch", "no-such-package", rows=[1])
    found = json.loads(options.json.read_text())
    assert (found["rows"], found["threads"]) == ([1], 3)
    assert found["versions"].keys() == {"torch"}
    options.quick, options.out = True, tmp_path / "new" / "other.json"
    harness.write(options)
    assert options.out.exists()


def test_a_piece_of_time_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(step, "now", lambda device: float(next(ticks)))
    clock = step.Clock(torch.device("cpu"))
    with clock.piece("outer"), clock.piece("inner"):  # the clock is read at 0, 1, 2 and 3
        pass
    assert dict(clock.seconds) == {"inner": 1, "outer": 2}


def test_resnet50_has_the_published_parameters_and_layers() -> None:
    """25,557,032 parameters in torchvision's ResNet-50, minus its classifier, plus the projector."""
    encoder = 25_557_032 - (2048 * 1000 + 1000)
    projector = 2048 * 2048 + 2 * 2048 + 2048 * 128 + 128
    assert NETWORK.parameters == encoder + projector
    assert len(NETWORK.channels) == 53 + 2


def test_one_node_of_one_gpu_has_nothing_to_wait_for() -> None:
    parts = scaling.step(1, 256, 1, MACHINE, NETWORK)
    assert parts["compute"] == 256 / 1000
    assert [parts[name] for name in ("gather of z", "BatchNorm", "gradients")] == [0, 0, 0]


def test_a_ring_by_hand() -> None:
    """A ring over two nodes of 8 has 15 steps, 2 of them between nodes; the network is the slowest part."""
    assert scaling.hops(16, MACHINE) == (13, 2)
    want = 45e6 / 45e9 + 2 * (13 * 3e-6 + 2 * 8e-6)
    assert scaling.ring(45e6, 16, MACHINE, rounds=2) == pytest.approx(want)
    assert scaling.hops(8, MACHINE) == (7, 0)


def test_the_bytes_of_the_loss_are_those_counted() -> None:
    scaling.check_counts()
    z, sums, sizes = 2 * 4096 * 128 * 4 / 8, 2 * 4096 * 4 / 8, 8
    assert scaling.loss_bytes(8, 4096) == 7 * (z + sums + sizes)


def test_more_gpus_are_never_more_efficient() -> None:
    found = scaling.rows(MACHINE, NETWORK, batch=4096, each=64)
    for kind in {(row["scaling"], row["batch_norm"]) for row in found}:
        efficiencies = [row["efficiency"] for row in found if (row["scaling"], row["batch_norm"]) == kind]
        assert all(0 < b <= a < 1 for a, b in itertools.pairwise(efficiencies))
    for row in found:
        assert math.isclose(sum(row["ms"].values()), row["step_ms"], rel_tol=1e-3)


def test_the_share_of_the_loss_is_of_a_step_of_the_same_batch() -> None:
    rows = [
        {"task": "loss", "what": "ours", "batch": 4096, "ms": 3.0},
        {"task": "bare step", "model": "resnet50", "batch": 256, "ms": 100.0},
        {"task": "bare step", "model": "resnet50", "batch": 256, "ms": 62.5},
    ]
    assert gpu.loss_share(rows) == pytest.approx(3.0 / 1000)
    assert gpu.loss_share(rows[1:]) is None
