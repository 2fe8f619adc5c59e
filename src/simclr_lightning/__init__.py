"""SimCLR as PyTorch Lightning modules: exact on one process or many.

An image becomes two views (`make_views`), the views become one batch of 2N (`ViewsDataModule`), the encoder makes h
(`resnet`), the projector makes z (`Projector`), NT-Xent compares every z with every other z on every device (`NTXent`),
and the optimizer updates encoder and projector (`LARS`, `SimCLR`). Afterwards the projector is dropped
(`load_encoder`).

Names are imported when they are first used: the command line answers a mistyped key without waiting for torch.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.data import Splits as Splits, ViewsDataModule as ViewsDataModule
    from simclr_lightning.encoders import (
        check_encoder as check_encoder,
        resnet as resnet,
        timm_encoder as timm_encoder,
        torchvision_encoder as torchvision_encoder,
    )
    from simclr_lightning.evaluation.classifier import FineTuner as FineTuner, LinearProbe as LinearProbe
    from simclr_lightning.export import export_encoder as export_encoder, load_encoder as load_encoder
    from simclr_lightning.ntxent import NTXent as NTXent, NTXentOutput as NTXentOutput, nt_xent as nt_xent
    from simclr_lightning.optim import (
        LARS as LARS,
        Schedule as Schedule,
        parameter_groups as parameter_groups,
        scaled_lr as scaled_lr,
        warmup_cosine as warmup_cosine,
    )
    from simclr_lightning.projector import Projector as Projector
    from simclr_lightning.simclr import SimCLR as SimCLR
    from simclr_lightning.views import (
        ViewRecipe as ViewRecipe,
        crop_views as crop_views,
        finish_views as finish_views,
        make_views as make_views,
    )

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
