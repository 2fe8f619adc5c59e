"""The projector, h -> z: no normalisation of z and no temperature; those belong to the loss."""

from itertools import pairwise

from torch import Tensor, nn


class Projector(nn.Module):
    """MLP head g with z = g(h), dropped after pretraining (paper section 2.1).

    Every layer is a Linear without bias followed by BatchNorm, with ReLU between layers; the last BatchNorm
    has no beta (authors' code). Two layers are the paper's, three the second paper's; 0 is the identity.

    Args:
        in_dim: width of h, the encoder's ``feature_dim``.
        hidden_dim: width between layers; ``in_dim`` when None.
        out_dim: width of z; with ``layers=0`` it is ``in_dim`` whatever is given.
        layers: 0 to 3.

    Attributes:
        out_dim: width of z.

    Raises:
        ValueError: a width below 1, or layers outside 0 to 3.
    """

    def __init__(self, in_dim: int, hidden_dim: int | None = None, out_dim: int = 128, layers: int = 2) -> None:
        super().__init__()
        hidden_dim = in_dim if hidden_dim is None else hidden_dim
        if layers not in (0, 1, 2, 3):
            raise ValueError(f"projector.layers is {layers}; choose 0, 1, 2 or 3")
        if min(in_dim, hidden_dim, out_dim) < 1:
            raise ValueError(f"projector widths are {in_dim}, {hidden_dim} and {out_dim}; each must be at least 1")
        self.out_dim = out_dim if layers else in_dim
        widths = [in_dim, *[hidden_dim] * (layers - 1), out_dim] if layers else []
        self.layers = nn.Sequential()
        for number, (width, next_width) in enumerate(pairwise(widths), start=1):
            self.layers.append(nn.Linear(width, next_width, bias=False))
            norm = nn.BatchNorm1d(next_width, eps=1e-5, momentum=0.1)
            self.layers.append(norm)
            if number < layers:
                self.layers.append(nn.ReLU(inplace=True))
            else:
                norm.register_parameter("bias", None)

    def forward(self, h_NF: Tensor) -> Tensor:
        """Return z (N, out_dim) of h (N, in_dim)."""
        z_ND: Tensor = self.layers(h_NF)
        return z_ND
