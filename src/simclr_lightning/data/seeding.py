"""Seed the global random generators of torch, NumPy and Python for one call of code that is not ours."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from simclr_lightning.random import generator_seed

ITEM = -1  # the view of a random number that belongs to an image before its two views are made
_LOCK = threading.RLock()


@contextmanager
def seeded(*, seed: int, epoch: int, index: int, view: int = ITEM) -> Iterator[None]:
    """Seed the three global CPU generators from a key inside the ``with`` block, and restore their states after it.

    So random code gives the same result in any worker, on any number of devices and after a resume. One thread at a
    time is inside, since the generators are shared. Other generators, such as ``numpy.random.default_rng()`` without a
    seed, are not seeded.

    >>> with seeded(seed=0, epoch=0, index=3):
    ...     first = random.random()
    >>> with seeded(seed=0, epoch=0, index=3):
    ...     print(random.random() == first)
    True
    """
    word = generator_seed(seed=seed, epoch=epoch, index=index, view=view)
    with _LOCK:
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(word)
        np.random.seed([word >> 32, word & 0xFFFFFFFF])
        random.seed(word)
        try:
            yield
        finally:
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])
