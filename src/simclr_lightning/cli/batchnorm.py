"""BatchNorm whose statistics several GPUs share: all of a run, or groups of them."""

from __future__ import annotations

import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn


class SharedBatchNorm(TorchSyncBatchNorm):
    """Replaces BatchNorm by torch's synchronised one when training starts, and puts it back at the end.

    Args:
        devices: neighbouring ranks that share their statistics; it divides the number of processes.
    """

    def __init__(self, devices: int) -> None:
        self.devices = devices

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with its BatchNorm layers replaced; every rank calls this at the same time."""
        group = None if self.devices == dist.get_world_size() else dist.new_subgroups(self.devices)[0]
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        return shared
