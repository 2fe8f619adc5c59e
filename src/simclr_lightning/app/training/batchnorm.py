"""Share the statistics of BatchNorm between several GPUs: all of a run, or groups of them."""

from __future__ import annotations

from typing import cast

import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import nn

from simclr_lightning.app.errors import UserError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SharedBatchNorm(LayerSync):
    """Replaces BatchNorm by synchronized BatchNorm when training starts, and puts it back at the end.

    In between, a model with groups cannot be copied: a process group cannot.

    Args:
        devices: neighbouring ranks that share their statistics; it divides the number of processes.
    """

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the model's BatchNorm layers; every rank calls this at the same time.

        Raises:
            UserError: for a layer of another kind whose synchronized form is not known.
        """
        group = None if self.devices == dist.get_world_size() else dist.new_subgroups(self.devices)[0]
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, nn.SyncBatchNorm):
                    setattr(parent, name, _shared(layer, group))
                    self.replaced.append((parent, name, layer))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the layers back, with the parameters and statistics of the synchronized ones."""
        for parent, name, layer in self.replaced:
            learnt = getattr(parent, name)
            layer._parameters, layer._buffers = learnt._parameters, learnt._buffers
            setattr(parent, name, layer.train(learnt.training))
        self.replaced.clear()
        return model


def _shared(layer: nn.Module, group: dist.ProcessGroup | None) -> nn.Module:
    """Return the synchronized form of a layer, on the same parameters."""
    if type(layer) in _PLAIN:
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer, group)
        return shared
    if any(kind.__name__ == "BatchNormAct2d" for kind in type(layer).mro()):
        from timm.layers.norm_act import convert_sync_batchnorm  # it keeps the activation that timm has in the layer

        return cast(nn.Module, convert_sync_batchnorm(layer, group))  # type: ignore[no-untyped-call]
    raise UserError(f"{type(layer).__name__} has no synchronized form; use trainer.sync_batchnorm=false")
