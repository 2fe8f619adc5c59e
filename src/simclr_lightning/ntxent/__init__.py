"""NT-Xent: ``loss`` has the function and the module, ``blocks`` the matrix, ``rows`` the sums of a row.

``negatives`` looks at what the temperature does, beside the loss.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.ntxent.loss import NTXent as NTXent
    from simclr_lightning.ntxent.loss import NTXentOutput as NTXentOutput
    from simclr_lightning.ntxent.loss import nt_xent as nt_xent
    from simclr_lightning.ntxent.negatives import HardnessOutput as HardnessOutput
    from simclr_lightning.ntxent.negatives import hardness as hardness

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
