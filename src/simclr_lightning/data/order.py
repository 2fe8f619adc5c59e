"""The images of each batch and rank: a keyed order for training, all images once for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from simclr_lightning import distributed
from simclr_lightning.data import position
from simclr_lightning.data.images import Splits
from simclr_lightning.data.samples import Augmentation, Key
from simclr_lightning.random import permutation
from simclr_lightning.views import ViewRecipe


class Plan(Protocol):
    """What a loader needs to know of a data module: the images, the recipe of views, the batch and the position."""

    recipe: ViewRecipe
    augmentation: Augmentation | None
    seed: int
    batch_size: int
    num_workers: int
    start_method: str | None
    trainer: L.Trainer | None

    def load(self) -> Splits:
        """Return the images."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""

    @property
    def samples_seen(self) -> int:
        """Images that training has seen since the start of the run, over all ranks."""


class TrainBatches(Sampler[Sequence[Key]]):
    """Yield this rank's part of every global batch, from the module's position to the end of the trainer's epoch.

    The order of an epoch is a permutation of all images; with `limit_train_batches`, an epoch has the first batches of
    it.
    """

    def __init__(self, module: Plan) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.steps_per_epoch

    def __iter__(self) -> Iterator[list[Key]]:
        module, size = self.module, self.module.batch_size
        steps = position.batches_per_pass(module.trainer, len(self))
        epoch, done = divmod(module.samples_seen // size, steps)
        key = 0 if position.repeats_batches(module.trainer) else epoch
        order = permutation(module.load().training_images, seed=module.seed, epoch=key)
        local = size // distributed.world_size()
        first = distributed.rank() * local
        for step in range(done, steps):
            start = step * size + first
            yield [(epoch, index) for index in order[start : start + local].tolist()]


class EvaluationBatches(Sampler[Sequence[Key]]):
    """Yield this rank's part of every global batch of some rows, in their order, each row once over all ranks.

    Every rank gets the same number of batches, so that the ranks can communicate in each. The parts of a batch differ
    by one image at most. A last batch of fewer than two images per rank is joined to the one before it. If there are
    fewer rows than ranks, rows are repeated.

    Args:
        rows: (n,) int64 rows of the set.
        batch_size: the global batch.
    """

    def __init__(self, rows: Tensor, batch_size: int) -> None:
        world = distributed.world_size()
        batches = list(rows.split(batch_size))
        if len(batches) > 1 and len(batches[-1]) < 2 * world:
            batches[-2:] = [torch.cat(batches[-2:])]
        if 0 < len(rows) < world:
            batches = [rows.repeat(-(-world // len(rows)))[:world]]
        self.parts = [batch.tensor_split(world)[distributed.rank()] for batch in batches if len(batch)]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[Key]]:
        for part in self.parts:
            yield [(0, index) for index in part.tolist()]


class Share(DistributedSampler[Key]):
    """Yield every W-th of n indices, beginning with this rank, each index once over all W ranks.

    It is a `DistributedSampler` so that a trainer does not distribute it once more.
    """

    def __init__(self, count: int) -> None:
        self.rank, self.num_replicas = distributed.rank(), distributed.world_size()
        self._indices = range(self.rank, count, self.num_replicas)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return iter(self._indices)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order is the same in every epoch."""
