"""Measure without side effects: copies of a module, restored random generators, a clock that waits for the device."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from simclr_lightning.simclr import SimCLR


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """On exit, restore the global random generators of Python, NumPy, torch and ``device``."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def trial(module: SimCLR, device: torch.device) -> SimCLR:
    """Return a copy of the module on ``device`` in training mode, with ``loss.gather=False`` so that no rank waits."""
    twin = copy.deepcopy(module).to(device).train()
    if hasattr(twin.loss, "gather"):
        twin.loss.gather = False
    return twin


def views(pairs: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two random views, each (pairs, 3, size, size) float32 in [0, 1], without a global random generator."""
    draw = torch.Generator(device).manual_seed(0)
    x_a, x_b = (torch.rand(pairs, 3, size, size, generator=draw, device=device) for _ in range(2))
    return x_a, x_b


def now(device: torch.device) -> float:
    """Wait until the device has finished its work; return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
