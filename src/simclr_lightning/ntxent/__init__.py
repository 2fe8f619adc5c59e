"""NT-Xent: ``loss`` has the function and the module, ``blocks`` the matrix, ``rows`` the sums of a row."""

from simclr_lightning.ntxent.loss import NTXent, NTXentOutput, nt_xent

__all__ = ["NTXent", "NTXentOutput", "nt_xent"]
