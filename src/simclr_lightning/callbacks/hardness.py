"""Log how hard the negatives are: which ones get the gradient at this temperature, and how similar they are."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from simclr_lightning import distributed
from simclr_lightning.batches import indices_of, labels_of
from simclr_lightning.callbacks.metrics import MeanOverRanks
from simclr_lightning.callbacks.rows import log_row, views_data, warn
from simclr_lightning.files import write_text
from simclr_lightning.ntxent import HardnessOutput, hardness

COLUMNS = ("step", "low", "high", "positives", "negatives")


class Hardness(L.Callback):
    """Log how hard the negatives are, every few steps, from the z that the loss receives.

    ``train/effective_negatives`` is exp(``entropy_all``) of the whole batch, if the loss returns ``entropy_all``.
    ``train/hardest_1`` and ``train/hardest_10`` are the shares of the negatives' gradient on the most similar 1 % and
    10 % of the negatives. With labels, ``train/same_class_hardest_1``, ``train/same_class_hardest_10`` and
    ``train/same_class_all`` are the shares of negatives of the row's own class among these and among all negatives: see
    `hardness`. A CSV file gets histograms of the cosines, one row per bin: step, low, high, positives, negatives.

    Labels are those of the `ViewsDataModule`, else those of the batch. At these steps, z is gathered over all ranks
    once more. If ``loss.gather`` is False, each rank uses its own z, and the file has the histograms of rank 0. If the
    module has no ``loss`` with a ``temperature``, nothing is logged: one warning says so.

    Args:
        path: the CSV file of the histograms; None: no file.
        every_n_steps: optimizer steps between two logged steps; the last step of the run is always logged. 0: off.
    """

    NAMES = ("hardest_1", "hardest_10", "same_class_hardest_1", "same_class_hardest_10", "same_class_all")

    def __init__(self, path: Path | None = None, *, every_n_steps: int = 50) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.latest: dict[str, float] = {}
        self._last_step = -1
        self._logged = 0  # the last step that was measured
        self._hook: RemovableHandle | None = None
        self._seen: tuple[Tensor, Tensor, Tensor | None] | None = None  # z_a, z_b, entropy_all of this rank
        self._off = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Warn once if the loss has no temperature, without which the hardness is not defined."""
        loss, self._logged = getattr(pl_module, "loss", None), 0
        self._off = not self.every_n_steps or not (isinstance(loss, nn.Module) and hasattr(loss, "temperature"))
        if self._off and self.every_n_steps and trainer.is_global_zero:
            warn(f"hardness is not logged: the loss {type(loss).__name__} is no module with a temperature")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the rows after the checkpoint from the file: a resumed run writes them again."""
        steps = trainer.estimated_stepping_batches
        self._last_step = -1 if steps == math.inf else int(steps)
        if self.path is not None and trainer.is_global_zero:
            _cut(self.path, trainer.global_step)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Register a hook on the loss if this step is logged."""
        step = trainer.global_step + 1
        if not self._off and step != self._logged and (step % self.every_n_steps == 0 or step == self._last_step):
            self._logged = step  # of several batches of one step, the first is measured
            self._hook = _loss(pl_module).register_forward_hook(self._store)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compute and log the hardness of what the hook stored; runs on every rank."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        if self._seen is None:  # the module did not call its loss
            return
        z_a, z_b, entropy_all = self._seen
        self._seen, loss = None, _loss(pl_module)
        gather, labels_n = getattr(loss, "gather", True), _labels(trainer, batch)
        keys_n = torch.zeros(len(z_a), dtype=torch.int64) if labels_n is None else labels_n
        z_2ND, keys_N = gather_pairs(torch.stack((z_a, z_b)), keys_n.to(z_a.device), gather=gather)
        labels_N = None if labels_n is None else keys_N
        found = hardness(z_2ND[0], z_2ND[1], float(cast(Any, loss.temperature)), labels=labels_N)
        means = MeanOverRanks(1 + len(self.NAMES))
        entropy_all = z_a.new_full((), math.nan) if entropy_all is None else entropy_all
        means.add(torch.stack([entropy_all.float(), *(value.float() for value in found[: len(self.NAMES)])]))
        entropy, *shares = means.take()
        named = {"effective_negatives": math.exp(entropy), **dict(zip(self.NAMES, shares, strict=True))}
        # NaN: without labels, or the loss returns no entropy_all.
        self.latest = {f"train/{name}": value for name, value in named.items() if not math.isnan(value)}
        log_row(trainer, self.latest)
        if self.path is not None and trainer.is_global_zero:
            _append(self.path, trainer.global_step, found)

    def _store(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Any) -> None:
        z_a, z_b = arguments[:2]
        self._seen = z_a.detach(), z_b.detach(), getattr(output, "entropy_all", None)


def gather_pairs(z_2nD: Tensor, keys_n: Tensor, *, gather: bool = True) -> tuple[Tensor, Tensor]:
    """Return z (2, N, D) and the keys of the images (N,) of all ranks, in the order of the ranks.

    Args:
        z_2nD: z of both views of the n images of this rank.
        keys_n: an integer of each image, such as its label or its index, int64.
        gather: False returns the arguments.
    """
    if not gather or distributed.world_size() == 1:
        return z_2nD, keys_n
    sizes = distributed.gather_sizes(len(keys_n), device=z_2nD.device)
    return distributed.gather_rows(z_2nD, sizes), distributed.gather_rows(keys_n[None], sizes)[0]


def _loss(module: L.LightningModule) -> nn.Module:
    loss = module.loss
    assert isinstance(loss, nn.Module)
    return loss


def _labels(trainer: L.Trainer, batch: Any) -> Tensor | None:
    """Return the labels of the images of this rank, (n,) int64, or None."""
    data, indices_n = views_data(trainer), indices_of(batch)
    if data is None or indices_n is None:
        labels_n = labels_of(batch)
        return None if labels_n is None or labels_n.is_floating_point() else labels_n.long()
    labels = data.load().train.labels
    return None if labels is None else labels[indices_n.to(labels.device)]


def _append(path: Path, step: int, found: HardnessOutput) -> None:
    bins = len(found.negatives)
    edges = [2 * place / bins - 1 for place in range(bins + 1)]
    counts = zip(edges[:-1], edges[1:], found.positives.tolist(), found.negatives.tolist(), strict=True)
    lines = [",".join(COLUMNS)] if not path.exists() else []
    lines += [f"{step},{low:g},{high:g},{positives},{negatives}" for low, high, positives, negatives in counts]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _cut(path: Path, step: int) -> None:
    """Remove the rows after ``step``, and incomplete rows."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in COLUMNS)]
    lines = [",".join(row[name] for name in COLUMNS) for row in rows if int(row["step"]) <= step]
    write_text(path, "\n".join([",".join(COLUMNS), *lines]) + "\n")
