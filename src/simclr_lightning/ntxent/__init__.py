"""Compute NT-Xent, the contrastive loss of SimCLR, with the candidates of all processes.

``loss`` holds the function and the module. ``blocks`` visits the similarity matrix block by block, and ``rows`` sums
along its rows. ``negatives`` measures how the temperature weights the negatives.
"""

from simclr_lightning.ntxent.loss import NTXent, NTXentOutput, nt_xent
from simclr_lightning.ntxent.negatives import HardnessOutput, hardness

__all__ = ["HardnessOutput", "NTXent", "NTXentOutput", "hardness", "nt_xent"]
