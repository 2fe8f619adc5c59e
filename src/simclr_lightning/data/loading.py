"""Load a process's part of every global batch: keys for sets in memory, two uint8 crops an image for the others.

Loader workers pass a batch through shared memory (/dev/shm). Where that is too small (Docker gives 64 MB), they send it
through a pipe as NumPy arrays; where there is none, this process loads by itself.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from simclr_lightning import distributed
from simclr_lightning.data.images import ImageSet
from simclr_lightning.data.order import EvaluationBatches, Plan, Share, TrainBatches
from simclr_lightning.data.samples import Augmented, Batch, Centers, Crops, Keys, Sample, collated
from simclr_lightning.text import first_line

SHARED_MEMORY: Final = Path("/dev/shm")  # of Linux
_FOR_SEMAPHORES: Final = 1 << 20  # bytes: a page, of at most 64 KB, for each of a loader's semaphores
_MORE: Final = "give the container more shared memory: docker run --shm-size=8g, or --ipc=host"


class Loader:
    """Batches of a `DataLoader`, which Lightning neither shuffles nor distributes again, as it does to a DataLoader."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Got pickle error")  # the error below has the fix
                return iter(self.loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if "pickle" not in str(error):
                raise
            raise ValueError(
                f"the data set cannot be sent to loader workers ({first_line(error)}): define its classes and "
                "functions at the top of a module, or use num_workers=0 (data.num_workers=0)"
            ) from error

    @property
    def num_workers(self) -> int:
        """Processes that load; 0: this process."""
        return self.loader.num_workers

    @property
    def _iterator(self) -> Any:  # Lightning stops the workers by it
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value

    def state_dict(self) -> dict[str, Any]:
        """Return no state: the position is the data module's. With it Lightning knows that the loader can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""


def train_loader(module: Plan) -> Loader:
    """Return the batches of this rank from the module's position on: keys for sets in memory, crops for other sets."""
    return Loader(_loader(module, _pairs(module, module.load().train), "train", batch_sampler=TrainBatches(module)))


def pair_loader(module: Plan, images: ImageSet, rows: Tensor, part: str) -> Loader:
    """Return the batches of this rank with two fixed views, those of epoch 0, of some rows of a set."""
    order = EvaluationBatches(rows, module.batch_size)
    return Loader(_loader(module, _pairs(module, images), part, batch_sampler=order, persistent=False))


def center_loader(module: Plan, images: ImageSet, part: str) -> DataLoader[Any]:
    """Return the batches of this rank with one evaluation view of every image of a set.

    It is a DataLoader of indices, in which Lightning finds the indices of a batch for its writers of predictions.
    """
    batch = -(-module.batch_size // distributed.world_size())
    source = Centers(images, module.recipe.size)
    return _loader(module, source, part, batch_size=batch, sampler=Share(len(images)), persistent=False)


def _pairs(module: Plan, images: ImageSet) -> Keys | Crops | Augmented:
    if module.augmentation is not None:
        return Augmented(images, module.augmentation, module.seed)
    return Keys() if images.tensor is not None else Crops(images, module.recipe, module.seed)


def _loader(
    module: Plan, source: Keys | Crops | Augmented | Centers, part: str, *, persistent: bool = True, **order: Any
) -> DataLoader[Any]:
    loads = isinstance(source, Augmented) or (not isinstance(source, Keys) and source.images.tensor is None)
    workers = module.num_workers if loads and _has_semaphores(module.num_workers) else 0
    if workers and module.start_method == "forkserver":
        # The server that forks the workers imports these once, so that a worker starts quickly.
        multiprocessing.set_forkserver_preload(["__main__", __name__, "simclr_lightning.data.disk.decode"])
    with warnings.catch_warnings():  # workers wait for the disk too: a process of one core may have several
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return DataLoader(
            source,
            **order,
            num_workers=workers,
            collate_fn=functools.partial(_collate, field=getattr(source, "field", ""), part=part),
            persistent_workers=persistent and workers > 0,
            worker_init_fn=_leave_signals_to_the_run if workers else None,
            pin_memory=loads and torch.cuda.is_available(),
            multiprocessing_context=module.start_method if workers else None,
        )


def fork() -> str | None:
    """Return "fork" on Linux; None elsewhere, for the default of the system."""
    return "fork" if sys.platform == "linux" else None


def _leave_signals_to_the_run(worker: int) -> None:
    """Ignore signals in a worker: Ctrl-C reaches every process, and the run needs its workers to end a step."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def as_tensors(batch: Batch) -> Batch:
    """Return a batch with tensors in place of the arrays of a worker that had no room in shared memory."""
    arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
    if arrays:
        _note(f"{SHARED_MEMORY} is too small for the batches: they go through pipes, which is slower; {_MORE}")
    return {**batch, **{key: torch.from_numpy(array) for key, array in arrays.items()}}


def _collate(samples: list[Sample], *, field: str, part: str) -> Batch:
    batch = collated(samples, field, part)
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
