"""What the loader gives a process: its part of every global batch, as keys or as two uint8 crops an image.

Legend: n images of this process's part, S the side of a view in pixels.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from simclr_lightning import distributed
from simclr_lightning.data.images import ImageSet, Splits
from simclr_lightning.random import permutation
from simclr_lightning.views import ViewRecipe, crop_views

# "epoch": int, "indices": (n,) int64 on the CPU, "crops": (n, 2, 3, S, S) uint8 for sets on disk, "device"
Batch = dict[str, Any]


class Plan(Protocol):
    """What the loader needs to know of a data module: the images, the recipe of views, the batch and the position."""

    recipe: ViewRecipe
    seed: int
    batch_size: int
    num_workers: int

    def load(self) -> Splits:
        """Return the images."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""

    @property
    def samples_seen(self) -> int:
        """Images that the optimizer has seen since the start of the run, over all ranks."""


def train_loader(module: Plan) -> DataLoader[Any]:
    """Batches of this rank from the module's position on: keys only for sets in memory, crops for the others."""
    train = module.load().train
    source = _Keys() if train.tensor is not None else _Crops(train, module.recipe, module.seed)
    workers = 0 if train.tensor is not None else module.num_workers
    if workers:
        # Imported once in the server that workers are forked from, not again in each: a worker starts at once.
        multiprocessing.set_forkserver_preload(["__main__", __name__, "simclr_lightning.data.disk.decode"])
    return DataLoader(
        source,
        batch_sampler=_GlobalBatches(module),
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_run if workers else None,
        pin_memory=train.tensor is None and torch.cuda.is_available(),
        # Workers are forked after threads exist in this process; a fresh interpreter is safe.
        multiprocessing_context="forkserver" if workers else None,
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: the run ends its step, for which it needs its workers."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class _Keys(Dataset[tuple[int, int]]):
    """For sets in memory: a sample is its (epoch, index); pixels are gathered on the device."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


class _Crops(Dataset[tuple[int, int, Tensor]]):
    """For sets on disk: decode once, cut both crops, keep them uint8."""

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
    """This rank's part of every global batch from the module's position to the end of that epoch."""

    def __init__(self, module: Plan) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        module, size = self.module, self.module.batch_size
        epoch, done = divmod(module.samples_seen // size, len(self))
        order = permutation(len(module.load().train), seed=module.seed, epoch=epoch)
        local = size // distributed.world_size()
        first = distributed.rank() * local
        for step in range(done, len(self)):
            start = step * size + first
            yield [(epoch, index) for index in order[start : start + local].tolist()]


def _collate(samples: list[tuple[Any, ...]]) -> Batch:
    # The epoch stays a plain int: a tensor would travel to the device and have to be read back.
    batch: Batch = {"epoch": samples[0][0], "indices": torch.tensor([sample[1] for sample in samples])}
    if len(samples[0]) == 3:
        batch["crops"] = torch.stack([sample[2] for sample in samples])
    return batch
