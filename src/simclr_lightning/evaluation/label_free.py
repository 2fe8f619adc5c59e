"""Judgement without labels: how many dimensions the features really use.

Shapes: n = images, F = features.
"""

import torch
from torch import Tensor


def effective_rank(h_nF: Tensor) -> float:
    """exp of the entropy of the normalised singular values of h (n, F): from 1 to min(n, F).

    1 means that all rows are multiples of one vector (complete collapse); min(n, F) that all directions
    are used alike. A table of zeros has 0. Roy & Vetterli 2007, "The effective rank", definition 1; the
    features are not centred.

    Raises:
        ValueError: h is not a table, is empty or holds values that are not finite.
    """
    if h_nF.ndim != 2 or h_nF.numel() == 0:
        raise ValueError(f"the effective rank is of a table of features, this has shape {tuple(h_nF.shape)}")
    # Eigenvalues of the small Gram matrix are the squared singular values. Formed in float64, they are
    # exact to 1e-8 of the largest singular value, far below what changes an entropy.
    h_nF = h_nF.double()
    gram = h_nF.T @ h_nF if h_nF.shape[0] >= h_nF.shape[1] else h_nF @ h_nF.T
    if not torch.isfinite(gram).all():
        raise ValueError("the effective rank needs finite features: these hold NaN or infinity")
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    if total == 0:
        return 0.0
    share = singular / total
    return float(torch.special.entr(share).sum().exp())
