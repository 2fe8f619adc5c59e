"""Make the optimizer and the scheduler of a run from factories: this package's, torch's, or others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Make an optimizer from parameter groups: any torch or timm class, with its options bound by `functools.partial`."""


class ScheduleFactory(Protocol):
    """Make the learning-rate scheduler of a run when its length is known. `Schedule` is one.

    Each keyword argument is optional: a factory gets those that it takes. So a class of torch is a factory too, with
    its options bound by `functools.partial`.
    """

    def __call__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        global_batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the scheduler; Lightning steps it after every optimizer step."""
        ...


AnySchedule = ScheduleFactory | Callable[[torch.optim.Optimizer], Any] | Mapping[str, Any] | None
"""A factory, Lightning's dictionary with a factory as its "scheduler", or None for a constant rate."""


def make_scheduler(schedule: AnySchedule, optimizer: torch.optim.Optimizer, **known: int) -> dict[str, Any] | None:
    """Return Lightning's dictionary of a scheduler, stepped after every optimizer step unless the dictionary differs.

    Args:
        schedule: see `AnySchedule`; a factory may also return such a dictionary.
        optimizer: the optimizer whose rate it sets.
        known: the values that a factory may take, by name: see `ScheduleFactory`.

    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10)
    >>> make_scheduler({"scheduler": cosine, "interval": "epoch"}, optimizer)["interval"]
    'epoch'
    """
    if schedule is None:
        return None
    options = dict(schedule) if isinstance(schedule, Mapping) else {}
    factory = options.pop("scheduler") if options else schedule
    made = factory(optimizer, **_taken(factory, known)) if callable(factory) else factory
    found = made if isinstance(made, Mapping) else {"scheduler": made}
    return {"interval": "step", **found, **options}


def _taken(factory: Callable[..., Any], known: Mapping[str, int]) -> dict[str, int]:
    """Return those of the known values that the factory takes: all that it needs, and optional ones if none is set."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(known)
    bound = set(factory.keywords) if isinstance(factory, functools.partial) else set()
    needed = {name for name in parameters if parameters[name].default is inspect.Parameter.empty}
    free = set() if bound & known.keys() else parameters.keys()
    return {name: value for name, value in known.items() if name not in bound and name in needed | free}
