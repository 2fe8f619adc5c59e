"""SIGKILL in the middle of saves."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import torch

from _faults.child import Child, Failures
from simclr_lightning import checkpoint


def saves(trials: int, folder: Path) -> Failures:
    """Kill a loop of saves at a random moment, every other time with the temporary folder on another disk.

    Every kill must leave a checkpoint that loads and is no older than the one before.
    """
    rng, run, newest = random.Random(0), folder / "run", 0
    last, best = (run / "checkpoints" / name for name in (checkpoint.LAST, checkpoint.BEST))

    def save_forever() -> None:
        step = newest
        while True:
            step += 1
            weights = torch.full((200_000,), float(step))
            checkpoint.save({"state_dict": {"w": weights}, "global_step": step}, last)
            checkpoint.copy(last, best)

    first = Child(save_forever, folder / "output")
    while checkpoint.newest(run) is None:
        time.sleep(0.01)
    first.kill(0)
    for trial in range(trials):
        tempfile.tempdir = "/dev/shm" if trial % 2 and Path("/dev/shm").is_dir() else None
        Child(save_forever, folder / "output").kill(rng.uniform(0.001, 0.06))
        found = checkpoint.newest(run)
        if found is None:
            yield f"kill {trial}: no checkpoint loads"
            continue
        state = checkpoint.load(found[0])
        if not (state["state_dict"]["w"] == state["global_step"]).all() or state["global_step"] < newest:
            yield f"kill {trial}: step {state['global_step']} after {newest}"
        newest = state["global_step"]
        if trial % 3 == 0:
            checkpoint.sweep_debris(run)
    tempfile.tempdir = None
