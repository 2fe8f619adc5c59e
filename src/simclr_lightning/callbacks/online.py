"""A score between epochs, on the held-out part of train alone."""

from __future__ import annotations

import lightning as L
import torch
from rich.console import Console
from torch import Tensor

from simclr_lightning.callbacks.rows import LOG, log_row
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.evaluation import effective_rank, extract, knn_predict
from simclr_lightning.ntxent import nt_xent
from simclr_lightning.simclr import SimCLR

QUERIES_AT_MOST = 10_000  # images of the held-out tenth that are scored between epochs
HELD_OUT_AT_MOST = 1024  # ... by the label-free score


class OnlineScore(L.Callback):
    """Scores the encoder between epochs on the held-out part of train, never on test.

    With labels: top-1 of kNN (cosine, majority vote of ``k``), bank = train without the held-out part. Without: the
    NT-Xent of held-out views, lower is better. Logged as ``online/knn_top1`` or ``online/held_out_loss``, beside
    ``online/effective_rank`` of h.

    Args:
        every_n_epochs: epochs between two scores; 0 turns them off.
        k: neighbours that vote.
        bank_at_most: images of the bank, drawn evenly when train has more.
    """

    def __init__(self, *, every_n_epochs: int = 1, k: int = 20, bank_at_most: int = 50_000) -> None:
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.bank_at_most = bank_at_most
        self.score: float | None = None  # of the epoch that just ended, higher is better
        self.latest: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score on rank 0, tell every rank."""
        self.score = None
        if not self.every_n_epochs or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        assert isinstance(pl_module, SimCLR)
        assert isinstance(data, ViewsDataModule)
        found: dict[str, float] = self._scores(pl_module, data) if trainer.is_global_zero else {}
        found = trainer.strategy.broadcast(found)
        self.latest = found
        self.score = found.get("online/knn_top1", -found.get("online/held_out_loss", 0.0))
        log_row(trainer, found)

    def _scores(self, module: SimCLR, data: ViewsDataModule) -> dict[str, float]:
        splits = data.load()
        if splits.train.labels is None or not len(splits.held_out):
            return _held_out_loss(module, data)
        bank = bank_indices(splits.train.labels, splits.held_out)
        bank = _thinned(bank, self.bank_at_most)
        asked = _thinned(splits.held_out, QUERIES_AT_MOST)
        rows = torch.cat((bank, asked))
        h = extract(module.encoder, data.eval_batches(splits.train, rows), device=module.device)
        labels = splits.train.labels
        k = min(self.k, len(bank))
        predicted = knn_predict(h[: len(bank)], labels[bank], h[len(bank) :], k=k)
        rank = warn_if_collapsed(h[len(bank) :])
        top1 = (predicted == labels[asked]).float().mean().item()
        return {"online/knn_top1": top1, "online/effective_rank": rank}


def bank_indices(labels: Tensor, held_out: Tensor) -> Tensor:
    """Indices of labelled training images without the held-out part: the bank of kNN and the data of the probe."""
    keep = labels >= 0
    keep[held_out] = False
    return keep.nonzero().flatten()


def _thinned(indices: Tensor, most: int) -> Tensor:
    """At most so many of the indices, at even distances."""
    return indices[:: -(-len(indices) // most) or 1]


def warn_if_collapsed(h: Tensor) -> float:
    """The effective rank of h (n, d), with a warning when the embedding has collapsed."""
    rank = effective_rank(h)
    if rank < 2:
        text = (
            f"the embedding has collapsed: effective rank {rank:.2f} of {h.shape[1]}; lower optimizer.lr or raise "
            "loss.temperature"
        )
        LOG.warning(text)
        Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {text}", highlight=False)
    return rank


@torch.no_grad()
def _held_out_loss(module: SimCLR, data: ViewsDataModule) -> dict[str, float]:
    """NT-Xent of held-out views in evaluation mode, in chunks of 128 images so that it does not depend on N."""
    held_out = data.load().held_out
    held_out = held_out[:HELD_OUT_AT_MOST] if len(held_out) else torch.arange(min(64, len(data.load().train)))
    was_training = module.training
    module.eval()
    losses, features = [], []
    for part in held_out.split(128):
        x_a, x_b = (x.to(module.device) for x in data.view_pairs(part))
        h_a, h_b = module.encoder(x_a), module.encoder(x_b)
        features.append(h_a.float().cpu())
        z_a, z_b = module.projector(h_a), module.projector(h_b)
        # Only this rank is here, so it must not wait for the others' rows.
        out = nt_xent(z_a, z_b, module.loss.temperature, gather=False)
        losses.append(out.loss.item() * len(part))
    module.train(was_training)
    rank = warn_if_collapsed(torch.cat(features))
    return {"online/held_out_loss": sum(losses) / len(held_out), "online/effective_rank": rank}
