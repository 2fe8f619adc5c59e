"""Compute NT-Xent, the contrastive loss of SimCLR, with the candidates of all processes.

``loss`` holds the function and the module. ``blocks`` visits the similarity matrix block by block, and ``rows`` sums
along its rows. ``negatives`` measures how the temperature weights the negatives.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.ntxent.loss import NTXent as NTXent, NTXentOutput as NTXentOutput, nt_xent as nt_xent
    from simclr_lightning.ntxent.negatives import HardnessOutput as HardnessOutput, hardness as hardness

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
