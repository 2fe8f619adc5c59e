"""Checkpoints that survive kills, and damaged or hostile files that are refused."""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from simclr_lightning import checkpoint
from simclr_lightning.checkpoint import BEST, LAST, PREVIOUS, CheckpointError
from simclr_lightning.run_folder import read_summary, write_summary


def state(number: int, size: int = 30_000) -> dict[str, object]:
    return {"state_dict": {"w": torch.full((size,), float(number))}, "global_step": number}


def number(path: Path) -> int:
    loaded = checkpoint.load(path)
    assert (loaded["state_dict"]["w"] == loaded["global_step"]).all()
    return int(loaded["global_step"])


def test_last_previous_and_best_are_whole_files(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.save(state(step), folder / LAST)
        if step == 2:
            checkpoint.copy(folder / LAST, folder / BEST)
    assert [number(folder / name) for name in (LAST, PREVIOUS, BEST)] == [3, 2, 2]
    assert checkpoint.newest(tmp_path) == (folder / LAST, ())
    assert not list(folder.glob(".*"))


def test_a_kill_at_any_moment_of_a_save_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    folder, rng = tmp_path / "checkpoints", random.Random(0)
    checkpoint.save(state(0), folder / LAST)
    newest = kills = 0
    while kills < 20 or (newest < 10 and kills < 1000):  # on a busy machine, fewer saves end between two kills
        kills += 1
        child = os.fork()
        if child == 0:  # saves until it is killed
            torch.set_num_threads(1)  # fork does not copy OpenMP's threads
            step = newest
            while True:
                step += 1
                checkpoint.save(state(step), folder / LAST)
                checkpoint.copy(folder / LAST, folder / BEST)
        time.sleep(rng.uniform(0.001, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = checkpoint.newest(tmp_path)
        assert found is not None
        step = number(found[0])
        assert step >= newest
        newest = step
        checkpoint.sweep_debris(tmp_path)
        assert not list(folder.glob(".*"))
        assert number(checkpoint.newest(tmp_path)[0]) == newest


def test_every_flipped_byte_and_every_truncation_is_refused_and_the_previous_one_is_used(tmp_path: Path) -> None:
    folder, rng = tmp_path / "checkpoints", random.Random(1)
    for step in (1, 2):
        checkpoint.save(state(step, 500), folder / LAST)
    path = folder / LAST
    whole = path.read_bytes()
    for trial in range(200):
        broken = bytearray(whole)
        if trial % 2:
            broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            broken = broken[: rng.randrange(len(whole))]
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(path)
        assert checkpoint.newest(tmp_path) == (folder / PREVIOUS, (path,))
    path.write_bytes(whole)
    assert number(path) == 2


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.trace, "ran")


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    path, trace = tmp_path / "checkpoints" / LAST, tmp_path / "trace"
    checkpoint.save({**state(1), "extra": Hostile(trace)}, path)
    with pytest.raises(CheckpointError, match="run code"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)
    assert not trace.exists()


@pytest.mark.parametrize("where", ["torch.save", "os.fsync"])
def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint.save(state(1), folder / LAST)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(where, full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(state(2), folder / LAST)
    monkeypatch.undo()
    assert number(folder / LAST) == 1
    assert not list(folder.glob(".*"))


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "missing.ckpt")
    path = tmp_path / "checkpoints" / LAST
    checkpoint.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="no state_dict"):
        checkpoint.load(path)
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_unfinished_runs_come_newest_first(tmp_path: Path) -> None:
    for number_, (name, status) in enumerate({"a": "stopped", "b": "finished", "c/d": None, "e": "failed"}.items()):
        run = tmp_path / name
        checkpoint.save(state(1, 10), run / "checkpoints" / LAST)
        if status:
            write_summary(run, {"status": status})
        os.utime(run / "checkpoints" / LAST, (number_, number_))
    (tmp_path / "c/d/summary.json").write_text("{broken")
    found = [str(run.relative_to(tmp_path)) for run in checkpoint.unfinished(tmp_path)]
    assert found == ["e", "c/d", "a"]


def test_texts_hold_file_names_that_are_not_utf8_and_a_nested_summary_is_empty(tmp_path: Path) -> None:
    checkpoint.write_text(tmp_path / "list", "n\udcff\n")
    assert (tmp_path / "list").read_bytes() == b"n\xff\n"
    (tmp_path / "summary.json").write_text("[" * 100_000)
    assert read_summary(tmp_path) == {}
