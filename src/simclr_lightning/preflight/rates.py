"""Measure images per second of the data path, and of the encoder with projector and loss, each alone for a second."""

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

SECONDS = 0.8  # time to measure the data path, and again to measure the encoder
SHARE = 0.02  # the maximum share of the time of the run in which the data path is measured
STEPS = 3  # training steps whose time is measured, after the warm-up
PROBE = 32  # images in a batch from disk: small batches are ready sooner, and take the same time per image


@dataclass(frozen=True)
class Rates:
    """Images per second of one process.

    Attributes:
        data: of the whole data path: loading, and finishing the views on the device.
        finish: of finishing the views on the training device, which happens between the steps.
        encoder: of forward and backward of encoder, projector and loss.
        workers: processes that load images during the steps; 0: the training process loads between the steps.
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
    """Measure data path and encoder, in about two seconds plus the start of the workers.

    Args:
        module: copied; it may be on any device.
        data: copied; its images must be loaded.
        batch: images per step of this process.
        device: where training will run.
        images: images of the whole run in this process; a short run is measured for a shorter time.
        context: makes the autocast context of the precision.
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
    """Return images per second of forward and backward of encoder, projector and loss on random images.

    The batch grows from 2 images until it has ``batch`` images or a step takes an eighth of ``seconds``. The result is
    from the median time of a few steps.

    Args:
        module: copied; it does not change.
        batch: images per step of this process.
        size: side of a view in pixels.
        device: where to measure.
        context: makes the autocast context of the precision.
        seconds: about how long to measure.
    """
    with untouched(device):
        twin = trial(module, device)
        time_step(twin, 2, size, device, context)  # the first call allocates memory and chooses kernels
        pairs, took = 2, time_step(twin, 2, size, device, context)
        while pairs < batch and took < seconds / 8:
            pairs = min(4 * pairs, batch)
            took = time_step(twin, pairs, size, device, context)
        times = [took]
        while len(times) <= STEPS and sum(times) + took < seconds:
            times.append(time_step(twin, pairs, size, device, context))
        return pairs / statistics.median(times[1:] or times)


def time_step(module: SimCLR, pairs: int, size: int, device: torch.device, context: Context) -> float:
    """Return the seconds of one forward and backward for ``pairs`` random images; old gradients are removed before."""
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
    """Return images per second of the whole data path, and of finishing the views on the device.

    The first batches, which the workers prepare while they start, are not counted.

    Args:
        data: copied; its images must be loaded.
        batch: images per step of this process.
        device: where the views are finished.
        seconds: about how long to measure, at most `SECONDS`; at least two batches are made.
    """
    in_memory = data.load().train.tensor is not None
    size = batch if in_memory else min(batch, PROBE)
    ahead = 1 if in_memory else max(1, 2 * data.num_workers)  # a DataLoader prefetches 2 batches per worker
    probe = copy.copy(data)
    probe.batch_size = size * distributed.world_size()
    probe.lazy = False  # make the views at once, not in `SimCLR.training_step`
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
    """Repeat the batches of the epoch without end, because a small data set may have only one."""
    loader = data.train_dataloader()
    return itertools.chain.from_iterable(itertools.repeat(loader))
