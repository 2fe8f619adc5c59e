"""Optimize, without a Trainer: LARS in ``lars``, parameter groups in ``groups``, learning rates in ``schedule``.

``factories`` makes optimizers and schedulers of this package, of torch and of others.
"""

from simclr_lightning.optim.factories import AnySchedule, OptimizerFactory, ScheduleFactory, make_scheduler
from simclr_lightning.optim.groups import parameter_groups
from simclr_lightning.optim.lars import LARS
from simclr_lightning.optim.schedule import Schedule, scaled_lr, warmup_cosine
from simclr_lightning.optim.timm_optimizers import timm_optimizer

__all__ = [
    "LARS",
    "AnySchedule",
    "OptimizerFactory",
    "Schedule",
    "ScheduleFactory",
    "make_scheduler",
    "parameter_groups",
    "scaled_lr",
    "timm_optimizer",
    "warmup_cosine",
]
