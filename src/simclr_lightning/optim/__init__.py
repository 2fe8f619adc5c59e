"""Optimize: LARS in ``lars``, parameter groups in ``groups``, learning rates in ``schedule``; no Trainer is needed.

``timm_optimizers`` makes the optimizers of timm.
"""

from simclr_lightning.optim.groups import parameter_groups
from simclr_lightning.optim.lars import LARS
from simclr_lightning.optim.schedule import Schedule, scaled_lr, warmup_cosine
from simclr_lightning.optim.timm_optimizers import timm_optimizer

__all__ = ["LARS", "Schedule", "parameter_groups", "scaled_lr", "timm_optimizer", "warmup_cosine"]
