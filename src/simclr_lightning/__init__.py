"""SimCLR as PyTorch Lightning modules: exact on one process or many.

An image becomes two views (`make_views`), the views become one batch of 2N (`ViewsDataModule`), the encoder makes h
(`resnet`), the projector makes z (`Projector`), NT-Xent compares every z with every other z on every device (`NTXent`),
and the optimiser moves the encoder (`LARS`, `SimCLR`); afterwards the projector is dropped (`load_encoder`).

Names are imported when they are first used: the command line answers a mistyped key without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simclr_lightning.data import Splits, ViewsDataModule
    from simclr_lightning.encoders import resnet, timm_encoder
    from simclr_lightning.export import export_encoder, load_encoder
    from simclr_lightning.ntxent import NTXent, NTXentOutput, nt_xent
    from simclr_lightning.optim import LARS, Schedule, parameter_groups, scaled_lr, warmup_cosine
    from simclr_lightning.projector import Projector
    from simclr_lightning.simclr import SimCLR
    from simclr_lightning.views import ViewRecipe, crop_views, finish_views, make_views

_ROOMS = {
    "LARS": "optim",
    "NTXent": "ntxent",
    "NTXentOutput": "ntxent",
    "Projector": "projector",
    "Schedule": "optim",
    "SimCLR": "simclr",
    "Splits": "data",
    "ViewRecipe": "views",
    "ViewsDataModule": "data",
    "crop_views": "views",
    "export_encoder": "export",
    "finish_views": "views",
    "load_encoder": "export",
    "make_views": "views",
    "nt_xent": "ntxent",
    "parameter_groups": "optim",
    "resnet": "encoders",
    "scaled_lr": "optim",
    "timm_encoder": "encoders",
    "warmup_cosine": "optim",
}

__all__ = [
    "LARS",
    "NTXent",
    "NTXentOutput",
    "Projector",
    "Schedule",
    "SimCLR",
    "Splits",
    "ViewRecipe",
    "ViewsDataModule",
    "crop_views",
    "export_encoder",
    "finish_views",
    "load_encoder",
    "make_views",
    "nt_xent",
    "parameter_groups",
    "resnet",
    "scaled_lr",
    "timm_encoder",
    "warmup_cosine",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
