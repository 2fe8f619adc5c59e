"""Read from a trainer how many batches it has had, and how many it asks for in one of its epochs."""

from __future__ import annotations

from typing import Any

import lightning as L


def batches_done(trainer: L.Trainer | None) -> int:
    """Return the number of batches since the start of the run, also where several make one optimizer step."""
    if trainer is None:
        return 0
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total  # Any: its type in Lightning is that of a base class
    return int(total.processed)


def batches_per_pass(trainer: L.Trainer | None, steps_per_epoch: int) -> int:
    """Return the number of batches in an epoch of the trainer; fewer than all with `limit_train_batches`.

    The trainer itself knows it only after the workers have begun to fetch.
    """
    if trainer is None or not trainer.training:
        return steps_per_epoch
    return limited(steps_per_epoch, trainer.limit_train_batches)


def limited(steps: int, limit: int | float) -> int:
    """Return the steps of an epoch with a limit: their largest number, or as a float their share; at least 1.

    >>> limited(10, 3), limited(10, 0.25), limited(10, 1.0)
    (3, 2, 10)
    """
    return min(steps, max(1, limit if isinstance(limit, int) else int(steps * limit)))


def repeats_batches(trainer: L.Trainer | None) -> bool:
    """Return whether every epoch has the same images, as `overfit_batches` asks for."""
    return trainer is not None and trainer.training and getattr(trainer, "overfit_batches", 0) > 0
