"""Scores between epochs, on the held-out part of train alone: with its labels where there are any, and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import lightning as L
import torch
from rich.console import Console
from torch import Tensor

from simclr_lightning.callbacks.averaging import averaged
from simclr_lightning.callbacks.rows import LOG, log_row
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.evaluation import BETTER, accuracy, extract, fit_logistic, knn_predict, score_views
from simclr_lightning.evaluation.features import evaluation_mode
from simclr_lightning.simclr import SimCLR

QUERIES_AT_MOST = 10_000  # images of the held-out tenth whose classes are predicted between epochs
PROBE_L2 = 1e-3  # of the online probe, times the features' mean variance

# What best.ckpt and a sweep may be chosen by, with the sign under which higher is better.
LABELLED: Final[dict[str, int]] = {"knn_top1": 1, "linear_top1": 1}
SELECTABLE: Final[dict[str, int]] = {**LABELLED, **BETTER}


class OnlineScore(L.Callback):
    """Scores the encoder between epochs on the held-out part of train, never on test.

    With labels: top-1 of kNN (cosine, majority vote of ``k``) and of a linear probe, both with train without the
    held-out part as their bank. Always: the label-free scores of `score_views` on two fixed views of held-out images.
    Logged as ``online/NAME``.

    The probe is logistic regression on h as `extract` gives it, under ``inference_mode``: its gradient cannot reach the
    encoder. It is fitted anew to its one optimum each time (l2 is `PROBE_L2` times the mean variance of the features),
    so it has no state that a checkpoint would have to carry. Its cross-entropy on the held-out part is
    ``online/linear_loss``.

    Args:
        every_n_epochs: epochs between two scores; the last epoch has one too. 0 turns them off.
        k: neighbours that vote, and of the neighbour agreement.
        bank_at_most: images of the bank, drawn evenly when train has more.
        views_at_most: held-out images whose two views are compared, drawn evenly.
        probe: whether the linear probe is fitted, where there are labels.
        select: the name of the score that counts as the best: one of `SELECTABLE`, or "auto" for kNN where there are
            labels and the held-out loss elsewhere.
        stop: returns the number of the signal that asks this process to stop, or 0. A score that is asked to stop is
            given up, so that a large set does not keep the signal waiting.

    Raises:
        ValueError: ``select`` is unknown or, when training starts, needs what is not there.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        k: int = 20,
        bank_at_most: int = 50_000,
        views_at_most: int = 1024,
        probe: bool = True,
        select: str = "auto",
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.bank_at_most = bank_at_most
        self.views_at_most = views_at_most
        self.probe = probe
        self.select = select
        self.stop = stop
        if select != "auto" and select not in SELECTABLE:
            raise ValueError(f"select={select}: choose auto or one of {', '.join(SELECTABLE)}")
        self.score: float | None = None  # of the epoch that just ended, higher is better
        self.latest: dict[str, float] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to select by a score that this run will not have."""
        if self.select == "auto":
            return
        if not self.every_n_epochs:
            raise ValueError(f"select={self.select} needs scores: set callbacks.online.every_n_epochs to 1 or more")
        if self.select in LABELLED and not _is_labelled(_data_of(trainer)):
            raise ValueError(
                f"select={self.select} needs labels, and these images have none: take auto or one of "
                f"{', '.join(BETTER)}"
            )
        if self.select == "linear_top1" and not self.probe:
            raise ValueError("select=linear_top1 needs the online probe: set callbacks.online.probe=true")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score on rank 0, tell every rank."""
        self.score = None
        if not self.every_n_epochs or ((trainer.current_epoch + 1) % self.every_n_epochs and not _is_last(trainer)):
            return
        assert isinstance(pl_module, SimCLR)
        found: dict[str, float] = {}
        if trainer.is_global_zero:
            with contextlib.suppress(_AskedToStop), averaged(trainer, pl_module):
                found = self._scores(pl_module, _data_of(trainer))
        found = trainer.strategy.broadcast(found)
        self.latest = {f"online/{name}": value for name, value in found.items()}
        if found:
            self.score = selected(found, self.select)
            log_row(trainer, self.latest)

    def _scores(self, module: SimCLR, data: ViewsDataModule) -> dict[str, float]:
        found = self._labelled(module, data) if _is_labelled(data) else {}
        found |= label_free(module, data, most=self.views_at_most, k=self.k, until_asked=self._until_asked)
        warn_if_collapsed(found["effective_rank"], getattr(module.encoder, "feature_dim", None))
        return found

    def _labelled(self, module: SimCLR, data: ViewsDataModule) -> dict[str, float]:
        splits = data.load()
        labels = splits.train.labels
        assert labels is not None
        bank = thinned(bank_indices(labels, splits.held_out), self.bank_at_most)
        asked = thinned(splits.held_out, QUERIES_AT_MOST)
        rows = torch.cat((bank, asked))
        batches = self._until_asked(data.eval_batches(splits.train, rows))
        h = extract(module.encoder, batches, device=module.device)
        h_bank, h_asked = h[: len(bank)], h[len(bank) :]
        predicted = knn_predict(h_bank, labels[bank], h_asked, k=min(self.k, len(bank)))
        found = {"knn_top1": (predicted == labels[asked]).float().mean().item()}
        if self.probe:
            if module.device.type == "cuda":
                h_bank, h_asked = h_bank.to(module.device), h_asked.to(module.device)
            found |= probe_scores(h_bank, labels[bank], h_asked, labels[asked])
        return found

    def _until_asked(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The batches; gives up when a signal came."""
        for batch in batches:
            if self.stop():
                raise _AskedToStop
            yield batch


class _AskedToStop(Exception):
    """A signal came while the encoder was scored."""


def selected(found: dict[str, float], select: str) -> float | None:
    """The score that counts, with the sign under which higher is better; None when it was not measured.

    Args:
        found: scores by their names in `SELECTABLE`.
        select: one of those names, or "auto".
    """
    if select == "auto":
        select = "knn_top1" if "knn_top1" in found else "held_out_loss"
    return SELECTABLE[select] * found[select] if select in found else None


def probe_scores(h_nF: Tensor, y_n: Tensor, held_h_mF: Tensor, held_y_m: Tensor) -> dict[str, float]:
    """Accuracy and cross-entropy (nats) on held-out features (m, F) of a linear probe fitted to features (n, F)."""
    classes = int(torch.cat((y_n, held_y_m)).max()) + 1
    l2 = PROBE_L2 * max(h_nF.var(0, correction=0).mean().item(), 1e-12)
    # Far from the optimum's last digits no prediction changes any more.
    weights = fit_logistic(h_nF, y_n, l2=l2, classes=classes, tolerance=1e-3)
    logits_mC = held_h_mF @ weights.weight.T + weights.bias
    loss = torch.nn.functional.cross_entropy(logits_mC, held_y_m.to(logits_mC.device))
    return {"linear_top1": accuracy(weights, held_h_mF, held_y_m), "linear_loss": loss.item()}


def bank_indices(labels: Tensor, held_out: Tensor) -> Tensor:
    """Indices of labelled training images without the held-out part: the bank of kNN and the data of the probe."""
    keep = labels >= 0
    keep[held_out] = False
    return keep.nonzero().flatten()


def thinned(indices: Tensor, most: int) -> Tensor:
    """At most so many of the indices, at even distances."""
    return indices[:: -(-len(indices) // most) or 1]


def warn_if_collapsed(rank: float, width: int | None) -> None:
    """Warn when the effective rank of h says that the embedding has collapsed.

    Args:
        rank: the effective rank.
        width: the encoder's feature_dim, for the message.
    """
    if rank < 2:
        text = (
            f"the embedding has collapsed: effective rank {rank:.2f} of {width}; lower optimizer.lr or raise "
            "loss.temperature"
        )
        LOG.warning(text)
        Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {text}", highlight=False)


@torch.no_grad()
def label_free(
    module: SimCLR,
    data: ViewsDataModule,
    *,
    most: int,
    k: int,
    until_asked: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
) -> dict[str, float]:
    """`score_views` of at most so many held-out images, in evaluation mode; the same two views of each every time.

    Args:
        module: nothing of it changes.
        data: its training images; where none is held out, 64 of them are taken.
        most: images.
        k: neighbours that are compared.
        until_asked: passes on the rows of a batch, or raises.
    """
    held_out = data.load().held_out
    held_out = thinned(held_out, most) if len(held_out) else torch.arange(min(64, len(data.load().train)))
    h: tuple[list[Tensor], list[Tensor]] = ([], [])
    z: tuple[list[Tensor], list[Tensor]] = ([], [])
    with evaluation_mode(module):
        for rows in until_asked(held_out.split(256)):
            for view, x in enumerate(data.view_pairs(rows)):
                features = module.encoder(x.to(module.device))
                h[view].append(features.float())
                z[view].append(module.projector(features).float())
    h_a, h_b, z_a, z_b = (torch.cat(parts).cpu() for parts in (*h, *z))
    return score_views(h_a, h_b, z_a, z_b, temperature=module.loss.temperature, k=k)


def _data_of(trainer: L.Trainer) -> ViewsDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    assert isinstance(data, ViewsDataModule)
    return data


def _is_last(trainer: L.Trainer) -> bool:
    """Whether the epoch that ends is the last of the run."""
    return trainer.current_epoch + 1 == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step


def _is_labelled(data: ViewsDataModule) -> bool:
    splits = data.load()
    return splits.train.labels is not None and len(splits.held_out) > 0
