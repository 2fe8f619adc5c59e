"""NT-Xent: ``loss`` has the function and the module, ``blocks`` the matrix, ``rows`` the sums of a row.

``negatives`` looks at what the temperature does, beside the loss.
"""

from simclr_lightning.ntxent.loss import NTXent, NTXentOutput, nt_xent
from simclr_lightning.ntxent.negatives import HardnessOutput, hardness

__all__ = ["HardnessOutput", "NTXent", "NTXentOutput", "hardness", "nt_xent"]
