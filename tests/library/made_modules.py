"""What the tests of the library share: pairs of views in memory, an encoder of a user, and plain Trainers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from simclr_lightning import NTXent, SimCLR

COUNT, BATCH = 24, 8


class Net(nn.Module):
    """The encoder of a user, without a feature_dim: a convolution and a feature map (B, 4, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))


def images() -> tuple[Tensor, Tensor, Tensor]:
    """Both views of COUNT images, each (COUNT, 3, 8, 8), and their labels."""
    draw = torch.Generator().manual_seed(7)
    x = torch.rand(COUNT, 3, 8, 8, generator=draw)
    x_b = (x + 0.1 * torch.rand(COUNT, 3, 8, 8, generator=draw)).clamp(0, 1)
    return x, x_b, torch.arange(COUNT) % 3


class Pairs(Dataset[Any]):
    """Samples in one of the forms of a batch."""

    def __init__(self, form: str = "pair and label") -> None:
        self.form = form
        self.x_a, self.x_b, self.y = images()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, i: int) -> Any:
        x_a, x_b, y = self.x_a[i], self.x_b[i], self.y[i]
        return {
            "pair": (x_a, x_b),
            "pair and label": ((x_a, x_b), y),
            "pair, label and name": ((x_a, x_b), y, f"{i}.png"),
            "dictionary": {"x_a": x_a, "x_b": x_b},
            "dictionary with labels": {"x_a": x_a, "x_b": x_b, "y": y},
            "three views": (x_a, x_b, x_a),
            "image and label": (x_a, y),
            "image": x_a,
            "dictionary of images": {"x": x_a, "indices": i},
        }[self.form]


def loader(form: str = "pair and label", batch: int = BATCH) -> DataLoader[Any]:
    return DataLoader(Pairs(form), batch_size=batch)


def module(loss: Any = None, *, lr: float = 0.5, **options: Any) -> SimCLR:
    torch.manual_seed(0)
    given = {"encoder": Net(), "projector": nn.Linear(4, 6), "loss": NTXent(0.5) if loss is None else loss}
    return SimCLR(**{**given, "optimizer": partial(torch.optim.SGD, lr=lr), **options})


def trainer(folder: Path | None = None, **options: Any) -> L.Trainer:
    """A Trainer as a user makes one, but quiet."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    given = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_model_summary": False}
    return L.Trainer(default_root_dir=folder, **{**quiet, **given, **options})


def weights(fitted: L.LightningModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in fitted.state_dict().items()}


def nt_xent_by_hand(z_a: Tensor, z_b: Tensor, temperature: float) -> Tensor:
    """Equation 1 of the paper as a loop over the rows, in float64."""
    z = nn.functional.normalize(torch.cat((z_a, z_b)).double())
    n = len(z_a)
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(z):
        s = z @ row / temperature
        others = torch.tensor([j for j in range(2 * n) if j != i])
        total = total + torch.logsumexp(s[others], 0) - s[(i + n) % (2 * n)]
    return total / (2 * n)
