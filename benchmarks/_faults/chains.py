"""Runs that are killed and resumed."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import torch

from _faults.child import SMALL, Child, Failures, array_file, program
from simclr_lightning import checkpoint

KILLS = 6  # of a chain, before it may finish


def chains(trials: int, folder: Path) -> Failures:
    """Kill runs at random moments and resume them until they finish: the same weights, the exact number of steps."""
    rng, output = random.Random(1), folder / "output"
    words = (*SMALL, f"data.path={array_file(folder)}", "trainer.max_epochs=4", "callbacks.checkpoints.every_n_steps=1")
    started = time.monotonic()
    assert Child(program("train", *words, f"hydra.run.dir={folder / 'whole'}"), output).code() == 0
    length = time.monotonic() - started
    want_step, want = weights(folder / "whole")
    for trial in range(trials):
        run = folder / f"chain{trial}"
        for link in range(KILLS + 1):
            saved = checkpoint.newest(run) is not None
            more = (f"ckpt_path={run}",) if saved else (*words, f"hydra.run.dir={run}")
            child = Child(program("train", *more), output)
            if link < KILLS and child.kill(rng.uniform(0.1, length)):
                continue
            if link == KILLS and (code := child.code()) != 0:
                yield f"chain {trial}: exit {code}: {child.message()}"
            break
        step, got = weights(run)
        if step != want_step or any(not torch.equal(got[name], x) for name, x in want.items()):
            yield f"chain {trial}: step {step} of {want_step}, or other weights"
        shutil.rmtree(run)


def weights(run: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the step and the weights of a run's newest checkpoint; -1 where none loads."""
    found = checkpoint.newest(run)
    if found is None:
        return -1, {}
    state = checkpoint.load(found[0])
    return int(state["global_step"]), state["state_dict"]
