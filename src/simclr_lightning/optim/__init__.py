"""Optimize: LARS in ``lars``, parameter groups in ``groups``, learning rates in ``schedule``; no Trainer is needed."""

from simclr_lightning.optim.groups import parameter_groups
from simclr_lightning.optim.lars import LARS
from simclr_lightning.optim.schedule import Schedule, scaled_lr, warmup_cosine

__all__ = ["LARS", "Schedule", "parameter_groups", "scaled_lr", "warmup_cosine"]
