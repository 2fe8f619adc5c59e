"""Measuring without leaving a trace: copies, generators put back, a clock that waits for the device."""

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
    """Put the global generators of Python, NumPy, torch and ``device`` back to where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def trial(module: SimCLR, device: torch.device) -> SimCLR:
    """A copy of the module on ``device`` in training mode, whose loss asks no other process for anything."""
    twin = copy.deepcopy(module).to(device).train()
    if hasattr(twin.loss, "gather"):
        twin.loss.gather = False
    return twin


def views(pairs: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two synthetic views, each (pairs, 3, size, size) float32 in [0, 1]; no global generator is used."""
    draw = torch.Generator(device).manual_seed(0)
    x_a, x_b = (torch.rand(pairs, 3, size, size, generator=draw, device=device) for _ in range(2))
    return x_a, x_b


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
