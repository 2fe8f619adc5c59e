"""Optimisation: LARS, parameter groups, learning-rate rules, warm-up and cosine decay; no Trainer."""

from simclr_lightning.optim.groups import parameter_groups
from simclr_lightning.optim.lars import LARS
from simclr_lightning.optim.schedule import Schedule, scaled_lr, warmup_cosine

__all__ = ["LARS", "Schedule", "parameter_groups", "scaled_lr", "warmup_cosine"]
