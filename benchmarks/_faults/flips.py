"""Damaged checkpoints."""

from __future__ import annotations

import random
from pathlib import Path

from _faults.child import Failures
from simclr_lightning import checkpoint, resnet


def flips(trials: int, folder: Path) -> Failures:
    """Flip one bit or cut off the end: loading must fail, and the previous checkpoint must be found instead."""
    rng, run = random.Random(2), folder / "run"
    path = run / "checkpoints" / checkpoint.LAST
    for step in (1, 2):
        checkpoint.save({"state_dict": resnet(10, 0.125, "cifar").state_dict(), "global_step": step}, path)
    whole = path.read_bytes()
    for trial in range(trials):
        broken = bytearray(whole)
        if trial % 2:
            broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            broken = broken[: rng.randrange(len(whole))]
        path.write_bytes(broken)
        try:
            checkpoint.load(path)
            yield f"trial {trial}: the damaged checkpoint was loaded"
        except checkpoint.CheckpointError:
            pass
        found = checkpoint.newest(run)
        if found is None or found[0].name != checkpoint.PREVIOUS:
            yield f"trial {trial}: the previous checkpoint was not found"
