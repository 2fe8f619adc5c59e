"""What the temperature does, seen: which negatives the gradient falls on, and how similar they are."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from simclr_lightning import distributed
from simclr_lightning.callbacks.metrics import MeanOverRanks
from simclr_lightning.callbacks.rows import log_row
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.files import write_text
from simclr_lightning.ntxent import HardnessOutput, hardness
from simclr_lightning.simclr import SimCLR

COLUMNS = ("step", "low", "high", "positives", "negatives")


class Hardness(L.Callback):
    """Logs how hard the negatives are, every few steps, from the z that the loss itself was given.

    ``train/effective_negatives`` is exp(``entropy_all``) of the whole batch. ``train/hardest_1`` and
    ``train/hardest_10`` are the shares of the negatives' gradient on the most similar 1 % and 10 % of them;
    ``train/same_class_hardest_1``, ``..._10`` and ``train/same_class_all`` the shares of the row's own class among
    these and all negatives, where there are labels: see `hardness`. Histograms of the cosines go to a file with the
    columns step, low, high, positives, negatives: one row a bin. Between those steps nothing is done. With several
    processes z is gathered once more at those steps, so all ranks see the same; a loss with ``gather=False`` is
    followed rank by rank, and the file holds rank 0's histograms.

    Args:
        path: the CSV file of the histograms; None writes none.
        every_n_steps: optimiser steps between two looks; the run's last step is looked at too. 0 turns it off.
    """

    NAMES = ("hardest_1", "hardest_10", "same_class_hardest_1", "same_class_hardest_10", "same_class_all")

    def __init__(self, path: Path | None = None, *, every_n_steps: int = 50) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        self._last_step = -1
        self._hook: RemovableHandle | None = None
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None  # z_a, z_b, entropy_all of this rank

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run will write the rows after its checkpoint again."""
        self._last_step = int(trainer.estimated_stepping_batches)
        if self.path is not None and trainer.is_global_zero:
            _cut(self.path, trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Listen to the loss at the steps that are looked at."""
        step = trainer.global_step + 1
        if self.every_n_steps and (step % self.every_n_steps == 0 or step == self._last_step):
            assert isinstance(pl_module, SimCLR)
            self._hook = pl_module.loss.register_forward_hook(self._listen)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what was heard; called on every rank alike."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        assert self._seen is not None
        assert isinstance(pl_module, SimCLR)
        z_a, z_b, entropy_all = self._seen
        self._seen, loss = None, pl_module.loss
        z_2ND, indices_N = gather_pairs(torch.stack((z_a, z_b)), batch["indices"], gather=loss.gather)
        found = hardness(z_2ND[0], z_2ND[1], loss.temperature, labels=_labels(trainer, indices_N))
        means = MeanOverRanks(1 + len(self.NAMES))
        means.add(torch.stack([entropy_all.float(), *(value.float() for value in found[: len(self.NAMES)])]))
        entropy, *shares = means.take()
        named = {"effective_negatives": math.exp(entropy), **dict(zip(self.NAMES, shares, strict=True))}
        self.latest = {
            f"train/{name}": value for name, value in named.items() if not math.isnan(value)
        }  # without labels
        log_row(trainer, self.latest)
        if self.path is not None and trainer.is_global_zero:
            _append(self.path, trainer.global_step, found)

    def _listen(self, module: torch.nn.Module, views: tuple[Tensor, ...], output: Any) -> None:
        z_a, z_b = views
        self._seen = z_a.detach(), z_b.detach(), output.entropy_all


def gather_pairs(z_2nD: Tensor, indices_n: Tensor, *, gather: bool = True) -> tuple[Tensor, Tensor]:
    """z (2, N, D) and the images' indices (N,) of all ranks in rank order, or of this one alone."""
    if not gather or distributed.world_size() == 1:
        return z_2nD, indices_n
    sizes = distributed.gather_sizes(len(indices_n), device=z_2nD.device)
    return distributed.gather_rows(z_2nD, sizes), distributed.gather_rows(indices_n[None], sizes)[0]


def _labels(trainer: L.Trainer, indices_N: Tensor) -> Tensor | None:
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    labels = data.load().train.labels if isinstance(data, ViewsDataModule) else None
    return None if labels is None else labels[indices_N.to(labels.device)]


def _append(path: Path, step: int, found: HardnessOutput) -> None:
    bins = len(found.negatives)
    edges = [2 * place / bins - 1 for place in range(bins + 1)]
    counts = zip(edges[:-1], edges[1:], found.positives.tolist(), found.negatives.tolist(), strict=True)
    lines = [",".join(COLUMNS)] if not path.exists() else []
    lines += [f"{step},{low:g},{high:g},{positives},{negatives}" for low, high, positives, negatives in counts]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _cut(path: Path, step: int) -> None:
    """Leave the whole rows up to ``step`` alone."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in COLUMNS)]
    kept = [",".join(row[name] for name in COLUMNS) for row in rows if int(row["step"]) <= step]
    write_text(path, "\n".join([",".join(COLUMNS), *kept]) + "\n")
