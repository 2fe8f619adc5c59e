"""Map features h to projections z; the loss, not the projector, normalizes z and applies the temperature."""

from itertools import pairwise

from torch import Tensor, nn


class Projector(nn.Module):
    """The MLP g of z = g(h), which is dropped after pretraining (paper section 2.1).

    Every layer is a Linear without bias followed by BatchNorm; ReLU comes between layers. The last BatchNorm has no
    beta (authors' code). The first SimCLR paper has two layers, the second paper three. No layers make the identity.

    Args:
        in_dim: width of h, the encoder's ``feature_dim``.
        hidden_dim: width between layers; None for ``in_dim``.
        out_dim: width of z; ignored if ``layers`` is 0.
        layers: the number of layers, 0 to 3.

    Attributes:
        out_dim: width of z; ``in_dim`` if ``layers`` is 0.
        spec: the arguments, from which a checkpoint makes the same projector.

    Raises:
        ValueError: a width is below 1, or ``layers`` is not 0 to 3.

    >>> import torch
    >>> Projector(512, out_dim=128)(torch.rand(4, 512)).shape
    torch.Size([4, 128])
    """

    def __init__(self, in_dim: int, hidden_dim: int | None = None, out_dim: int = 128, layers: int = 2) -> None:
        super().__init__()
        hidden_dim = in_dim if hidden_dim is None else hidden_dim
        if layers not in (0, 1, 2, 3):
            raise ValueError(f"projector.layers is {layers}; choose 0, 1, 2 or 3")
        if min(in_dim, hidden_dim, out_dim) < 1:
            raise ValueError(
                f"projector has in_dim={in_dim}, hidden_dim={hidden_dim}, out_dim={out_dim}; each must be at least 1"
            )
        self.spec = {"in_dim": in_dim, "hidden_dim": hidden_dim, "out_dim": out_dim, "layers": layers}
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
        """Return projections z (N, out_dim) of features h (N, in_dim)."""
        z_ND: Tensor = self.layers(h_NF)
        return z_ND
