"""Compute NT-Xent, the contrastive loss of SimCLR, and its relatives, with the candidates of all processes.

``loss`` holds NT-Xent as a function and as a module, and ``family`` the relatives. Both call ``operator``. It visits
the similarity matrix block by block (``blocks``), sums along its rows (``rows``), and turns the sums into the rows of a
loss (``objectives``). ``negatives`` measures how the temperature weights the negatives.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.ntxent.family import (
        DCL as DCL,
        Debiased as Debiased,
        SupCon as SupCon,
        dcl as dcl,
        debiased as debiased,
        sup_con as sup_con,
    )
    from simclr_lightning.ntxent.loss import NTXent as NTXent, NTXentOutput as NTXentOutput, nt_xent as nt_xent
    from simclr_lightning.ntxent.negatives import HardnessOutput as HardnessOutput, hardness as hardness

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
