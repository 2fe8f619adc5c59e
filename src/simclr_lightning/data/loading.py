"""Load a process's part of every global batch: keys for sets in memory, two uint8 crops an image for the others.

Loader workers pass a batch through shared memory (/dev/shm). Where that is too small (Docker gives 64 MB), they send it
through a pipe as NumPy arrays; where there is none, this process loads by itself.

Legend: n images of this process's part, S the side of a view in pixels.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from simclr_lightning import distributed
from simclr_lightning.data.images import ImageSet, Splits
from simclr_lightning.random import permutation
from simclr_lightning.views import ViewRecipe, crop_views

# "epoch": int, "indices": (n,) int64 on the CPU, "crops": (n, 2, 3, S, S) uint8 for sets on disk, "device"
Batch = dict[str, Any]
SHARED_MEMORY: Final = Path("/dev/shm")  # of Linux
_FOR_SEMAPHORES: Final = 1 << 20  # bytes: a page, of at most 64 KB, for each of a loader's semaphores
_MORE: Final = "give the container more shared memory: docker run --shm-size=8g, or --ipc=host"


class Plan(Protocol):
    """What the loader needs to know of a data module: the images, the recipe of views, the batch and the position."""

    recipe: ViewRecipe
    seed: int
    batch_size: int
    num_workers: int
    trainer: Any

    def load(self) -> Splits:
        """Return the images."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""

    @property
    def samples_seen(self) -> int:
        """Images that the optimizer has seen since the start of the run, over all ranks."""


def train_loader(module: Plan) -> DataLoader[Any]:
    """Return the batches of this rank from the module's position on: keys for sets in memory, crops for other sets."""
    train = module.load().train
    source = _Keys() if train.tensor is not None else _Crops(train, module.recipe, module.seed)
    workers = module.num_workers if train.tensor is None and _has_semaphores(module.num_workers) else 0
    if workers:
        # The server that forks the workers imports these once, so that a worker starts quickly.
        multiprocessing.set_forkserver_preload(["__main__", __name__, "simclr_lightning.data.disk.decode"])
    with warnings.catch_warnings():  # workers wait for the disk too: a process of one core may have several
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return _loader(module, source, workers, pin=train.tensor is None and torch.cuda.is_available())


def _loader(module: Plan, source: _Keys | _Crops, workers: int, *, pin: bool) -> DataLoader[Any]:
    return DataLoader(
        source,
        batch_sampler=_GlobalBatches(module),
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_run if workers else None,
        pin_memory=pin,
        # This process has threads already, so forking it is not safe; the server is a fresh interpreter.
        multiprocessing_context="forkserver" if workers else None,
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """Ignore signals in a worker: Ctrl-C reaches every process, and the run needs its workers to end a step."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class _Keys(Dataset[tuple[int, int]]):
    """Samples of a set in memory: (epoch, index); the pixels are gathered on the device."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


class _Crops(Dataset[tuple[int, int, Tensor]]):
    """Samples of a set on disk: an image is decoded once, and both crops are cut from it as uint8."""

    def __init__(self, images: ImageSet, recipe: ViewRecipe, seed: int) -> None:
        self.images = images
        self.recipe = recipe
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int, Tensor]:
        epoch, index = key
        image = self.images.load(index)
        crops = crop_views(image, seed=self.seed, epoch=epoch, index=index, recipe=self.recipe)
        return epoch, index, crops


class _GlobalBatches(Sampler[Sequence[tuple[int, int]]]):
    """Yields this rank's part of every global batch, from the module's position to the end of that epoch."""

    def __init__(self, module: Plan) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        module, size = self.module, self.module.batch_size
        epoch, done = divmod(module.samples_seen // size, len(self))
        repeats = getattr(module.trainer, "overfit_batches", 0) > 0  # the same images in every epoch, in other views
        order = permutation(module.load().training_images, seed=module.seed, epoch=0 if repeats else epoch)
        local = size // distributed.world_size()
        first = distributed.rank() * local
        for step in range(done, len(self)):
            start = step * size + first
            yield [(epoch, index) for index in order[start : start + local].tolist()]


def as_tensors(batch: Batch) -> Batch:
    """Return a batch with tensors in place of the arrays of a worker that had no room in shared memory."""
    arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
    if arrays:
        _note(f"{SHARED_MEMORY} is too small for the batches: they go through pipes, which is slower; {_MORE}")
    return {**batch, **{key: torch.from_numpy(array) for key, array in arrays.items()}}


def _collate(samples: list[tuple[Any, ...]]) -> Batch:
    # The epoch stays a plain int: a tensor would be moved to the device and read back from it.
    batch: Batch = {"epoch": samples[0][0], "indices": torch.tensor([sample[1] for sample in samples])}
    if len(samples[0]) == 3:
        batch["crops"] = torch.stack([sample[2] for sample in samples])
    return batch if get_worker_info() is None else _sent(batch)


def _sent(batch: Batch) -> Batch:
    """Return a worker's batch in shared memory, or where there is no room for it as arrays, which travel in a pipe.

    Left to the queue, a tensor that does not fit would be dropped in a thread, and the run would wait for it.
    """
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    try:
        return {**batch, **{key: tensor.share_memory_() for key, tensor in tensors.items()}}
    except RuntimeError:
        for left in SHARED_MEMORY.glob(f"torch_{os.getpid()}_*"):  # of the attempt; those in use have no name
            with contextlib.suppress(OSError):
                left.unlink()
        # Copied: the tensors that did fit must not stay in shared memory.
        return {**batch, **{key: tensor.numpy().copy() for key, tensor in tensors.items()}}


def _has_semaphores(workers: int) -> bool:
    """Return whether worker processes can be started; without /dev/shm there are no semaphores for their queues."""
    if workers == 0:
        return False
    try:
        multiprocessing.get_context("fork").Lock()
        if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free >= _FOR_SEMAPHORES:
            return True
        reason = "no room"
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or "the system has no semaphores"
    _note(f"loader workers cannot be started ({SHARED_MEMORY}: {reason}): images are loaded between steps; {_MORE}")
    return False


@functools.cache  # once
def _note(text: str) -> None:
    if distributed.rank() == 0:
        print(f"note: {text}", file=sys.stderr)
