"""Images a second: of the data path, and of the encoder with projector and loss, each measured alone for a moment."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from simclr_lightning import distributed
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.preflight.copies import now, trial, untouched, views
from simclr_lightning.simclr import SimCLR

Context = Callable[[], AbstractContextManager[Any]]

SECONDS = 0.8  # for the data path, and again for the encoder
SHARE = 0.02  # ... and the data path takes no more than this share of the run
STEPS = 3  # training steps that the encoder is timed for, after its warm-up
PROBE = 32  # images a batch from disk: small ones come soon, and cost a worker the same an image


@dataclass(frozen=True)
class Rates:
    """Images a second of one process.

    Attributes:
        data: views that the data path gives, loading and finishing together.
        finish: what is made on the training device alone, between the steps; part of ``data``.
        encoder: forward and backward of encoder, projector and loss on views that are there.
        workers: processes that load beside the training; 0 when the process does it itself, between the steps.
    """

    data: float
    finish: float
    encoder: float
    workers: int


def measure_rates(
    module: SimCLR,
    data: ViewsDataModule,
    *,
    batch: int,
    device: torch.device,
    images: float = float("inf"),
    context: Context = nullcontext,
) -> Rates:
    """Measure both, in about two seconds and the start of the workers.

    Args:
        module: copied; it may be on any device.
        data: copied; its images must be loaded.
        batch: images of this process in a step.
        device: where training will run.
        images: images that this process will train on; a short run is measured for a short time.
        context: the precision's autocast.
    """
    encoder = encoder_rate(module, batch=batch, size=data.recipe.size, device=device, context=context)
    data_per_second, finish = data_rate(data, batch=batch, device=device, seconds=SHARE * images / encoder)
    workers = data.num_workers if data.load().train.tensor is None else 0
    return Rates(data_per_second, finish, encoder, workers)


def encoder_rate(
    module: SimCLR,
    *,
    batch: int,
    size: int,
    device: torch.device,
    context: Context = nullcontext,
    seconds: float = SECONDS,
) -> float:
    """Images a second of forward and backward of encoder, projector and loss on a synthetic batch.

    The batch grows from 2 images until it is ``batch``, or until a step takes so long that a larger one would be no
    more telling; then a few steps are timed and the median counts.

    Args:
        module: copied, never changed.
        batch: images of this process in a step.
        size: side S of a view.
        device: where.
        context: the precision's autocast.
        seconds: about how long.
    """
    with untouched(device):
        twin = trial(module, device)
        time_step(twin, 2, size, device, context)  # memory and kernels are found at the first call
        pairs, took = 2, time_step(twin, 2, size, device, context)
        while pairs < batch and took < seconds / 8:
            pairs = min(4 * pairs, batch)
            took = time_step(twin, pairs, size, device, context)
        times = [took]
        while len(times) <= STEPS and sum(times) + took < seconds:
            times.append(time_step(twin, pairs, size, device, context))
        return pairs / statistics.median(times[1:] or times)


def time_step(module: SimCLR, pairs: int, size: int, device: torch.device, context: Context) -> float:
    """Seconds of one forward and backward of ``pairs`` images; gradients are dropped before."""
    x_a, x_b = views(pairs, size, device)
    module.zero_grad(set_to_none=True)
    start = now(device)
    with context():
        loss = module.contrast(x_a, x_b).loss
    loss.backward()
    return now(device) - start


def data_rate(
    data: ViewsDataModule, *, batch: int, device: torch.device, seconds: float = SECONDS
) -> tuple[float, float]:
    """Images a second of the data path, and of its part on the device: loader, workers, transfer and views.

    The batches that workers prepare while all of them start are left out.

    Args:
        data: its images must be loaded; the order and the position of its training are not touched.
        batch: images of this process in a step.
        device: where the views are finished.
        seconds: about how long, at most `SECONDS`; at least two batches are made.
    """
    in_memory = data.load().train.tensor is not None
    size = batch if in_memory else min(batch, PROBE)
    ahead = 1 if in_memory else max(1, 2 * data.num_workers)  # the loader's own look-ahead is 2 batches a worker
    probe = copy.copy(data)
    probe.batch_size = size * distributed.world_size()
    probe.lazy = False  # what would be made when asked for is made here
    limit = min(seconds, SECONDS)
    stamps: list[float] = []
    finishing: list[float] = []
    with untouched(device):
        for loaded in _forever(probe):
            start = now(device)
            probe.on_after_batch_transfer(probe.transfer_batch_to_device(loaded, device, 0), 0)
            stamps.append(now(device))
            finishing.append(stamps[-1] - start)
            first = max(0, min(ahead, len(stamps) - 1) - 1)  # the last batch that is not counted
            late = stamps[-1] - stamps[0] >= 2 * limit
            if (len(stamps) > ahead and stamps[-1] - stamps[first] >= limit) or (len(stamps) > 1 and late):
                break
    images = size * (len(stamps) - 1 - first)
    return images / (stamps[-1] - stamps[first]), images / sum(finishing[first + 1 :])


def _forever(data: ViewsDataModule) -> Iterator[Any]:
    """The batches of the epoch, again and again: a small set may have only one."""
    loader = data.train_dataloader()
    return itertools.chain.from_iterable(itertools.repeat(loader))
