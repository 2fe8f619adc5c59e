"""The loader of one process: its part of every global batch, as keys or as two uint8 crops of each image.

Legend: n images of this process's part, S the side of a view in pixels.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from simclr_lightning import distributed
from simclr_lightning.random import permutation
from simclr_lightning.views import ViewRecipe, crop_views

if TYPE_CHECKING:
    from simclr_lightning.data.datamodule import ViewsDataModule
    from simclr_lightning.data.images import ImageSet

# "epoch": int, "indices": (n,) int64 on the CPU, "crops": (n, 2, 3, S, S) uint8 for sets on disk, "device"
Batch = dict[str, Any]


def train_loader(module: ViewsDataModule) -> DataLoader[Any]:
    """Return the batches of this rank from the module's position on: keys for sets in memory, crops for other sets."""
    train = module.load().train
    source = _Keys() if train.tensor is not None else _Crops(train, module.recipe, module.seed)
    workers = 0 if train.tensor is not None else module.num_workers
    if workers:
        # The server that forks the workers imports these once, so that a worker starts quickly.
        multiprocessing.set_forkserver_preload(["__main__", __name__])
    return DataLoader(
        source,
        batch_sampler=_GlobalBatches(module),
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals_to_the_run if workers else None,
        pin_memory=train.tensor is None and torch.cuda.is_available(),
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

    def __init__(self, module: ViewsDataModule) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.steps_per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        module, size = self.module, self.module.batch_size
        epoch, done = divmod(module.samples_seen // size, len(self))
        order = permutation(module.load().training_images, seed=module.seed, epoch=epoch)
        local = size // distributed.world_size()
        first = distributed.rank() * local
        for step in range(done, len(self)):
            start = step * size + first
            yield [(epoch, index) for index in order[start : start + local].tolist()]


def _collate(samples: list[tuple[Any, ...]]) -> Batch:
    # The epoch stays a plain int: a tensor would be moved to the device and read back from it.
    batch: Batch = {"epoch": samples[0][0], "indices": torch.tensor([sample[1] for sample in samples])}
    if len(samples[0]) == 3:
        batch["crops"] = torch.stack([sample[2] for sample in samples])
    return batch
