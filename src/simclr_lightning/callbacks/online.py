"""Score the encoder between epochs on the held-out part of train, with its labels if there are any, and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import lightning as L
import torch
from torch import Tensor

from simclr_lightning.callbacks.averaging import averaged
from simclr_lightning.callbacks.rows import log_row, views_data, warn
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.data.images import bank_indices
from simclr_lightning.evaluation import accuracy, extract, fit_logistic, knn_predict, score_views
from simclr_lightning.evaluation.features import evaluation_mode
from simclr_lightning.selection import LABEL_FREE, LABELED, SELECTABLE, selected
from simclr_lightning.simclr import SimCLR
from simclr_lightning.stopping import Stopped

QUERIES_AT_MOST = 10_000  # held-out images whose classes are predicted between epochs
PROBE_L2 = 1e-3  # l2 of the online probe, in units of the mean variance of the features


class OnlineScore(L.Callback):
    """Score the encoder between epochs on the held-out part of train, never on test; log as ``online/NAME``.

    With labels: ``knn_top1`` (cosine, majority vote) and ``linear_top1`` (a linear probe), top-1 in [0, 1] on the
    held-out part. The rest of train is the bank of kNN and the training set of the probe. With and without labels: the
    scores of `score_views`, for two fixed views of held-out images. ``held_out_loss`` needs ``loss.temperature``, and
    is left out if the loss has none.

    The probe is logistic regression on h under ``inference_mode``, so its gradient cannot reach the encoder. Each time
    it is fitted from zero to its unique optimum (l2 is `PROBE_L2` times the mean variance of the features), so it has
    no state to save. Its cross-entropy on the held-out part is logged as ``online/linear_loss``.

    Args:
        every_n_epochs: epochs between two scores; the last epoch is always scored. 0: off.
        k: neighbors of kNN and of the neighbor agreement.
        bank_at_most: the maximum number of images in the bank, taken at equal distances.
        views_at_most: the maximum number of held-out images whose two views are compared, taken at equal distances.
        probe: fit the linear probe, if there are labels.
        select: the score that decides which checkpoint is best: a name in `SELECTABLE`, or "auto": ``knn_top1`` with
            labels, ``held_out_loss`` without.
        stop: returns the number of a signal that this process has received, or 0. On a signal the scores of this epoch
            are skipped, so that the run can stop soon.

    Raises:
        ValueError: ``select`` is unknown or, when training starts, names a score that this run cannot have; or the
            module is no `SimCLR`, or the data module no `ViewsDataModule`, which holds the images for the scores.
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
        self.score: float | None = None  # the selected score of the last epoch; higher is better
        self.latest: dict[str, float] = {}
        self.features: tuple[int, Tensor, Tensor] | None = None  # of the run's last scores: step, rows of train, h

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there are images to score."""
        if stage == "fit" and self.every_n_epochs and not isinstance(pl_module, SimCLR):
            raise ValueError(f"OnlineScore scores a SimCLR, not a {type(pl_module).__name__}")
        if stage == "fit" and self.every_n_epochs and views_data(trainer) is None:
            raise ValueError("OnlineScore needs the images of a ViewsDataModule: trainer.fit(module, datamodule=...)")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that this run can have the selected score."""
        if self.select == "auto":
            return
        if not self.every_n_epochs:
            raise ValueError(f"select={self.select} needs scores: set callbacks.online.every_n_epochs to 1 or more")
        if self.select in LABELED and not _is_labeled(_data_of(trainer)):
            raise ValueError(
                f"select={self.select} needs labels, and these images have none: choose auto or one of "
                f"{', '.join(LABEL_FREE)}"
            )
        if self.select == "held_out_loss" and _temperature(pl_module) is None:
            raise ValueError("select=held_out_loss needs a loss with a temperature: choose another score")
        if self.select == "linear_top1" and not self.probe:
            raise ValueError("select=linear_top1 needs the online probe: set callbacks.online.probe=true")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute the scores on rank 0, and send them to all ranks."""
        self.score = None
        if not self.every_n_epochs or ((trainer.current_epoch + 1) % self.every_n_epochs and not _is_last(trainer)):
            return
        assert isinstance(pl_module, SimCLR)
        found: dict[str, float] = {}
        if trainer.is_global_zero:
            with contextlib.suppress(Stopped), averaged(trainer, pl_module):
                found = self._scores(pl_module, _data_of(trainer), trainer.global_step if _is_last(trainer) else None)
        found = trainer.strategy.broadcast(found)
        self.latest = {f"online/{name}": value for name, value in found.items()}
        if found:
            self.score = selected(found, self.select)
            log_row(trainer, self.latest)

    def _scores(self, module: SimCLR, data: ViewsDataModule, last_step: int | None) -> dict[str, float]:
        found = self._labeled_scores(module, data, last_step) if _is_labeled(data) else {}
        found |= label_free(module, data, most=self.views_at_most, k=self.k, wrap=self._until_signal)
        warn_if_collapsed(found["effective_rank"], getattr(module.encoder, "feature_dim", None))
        return found

    def _labeled_scores(self, module: SimCLR, data: ViewsDataModule, last_step: int | None) -> dict[str, float]:
        splits = data.load()
        labels = splits.train.labels
        assert labels is not None
        bank = thinned(bank_indices(labels, splits.held_out), self.bank_at_most)
        asked = thinned(splits.held_out, QUERIES_AT_MOST)
        rows = torch.cat((bank, asked))
        batches = self._until_signal(data.eval_batches(splits.train, rows))
        h = extract(module, batches, device=module.device)
        if last_step is not None and module.device.type == "cpu":  # on a GPU, training may use TF32, and scores do not
            self.features = last_step, rows, h
        h_bank, h_asked = h[: len(bank)], h[len(bank) :]
        predicted = knn_predict(h_bank, labels[bank], h_asked, k=min(self.k, len(bank)))
        found = {"knn_top1": (predicted == labels[asked]).float().mean().item()}
        if self.probe:
            if module.device.type == "cuda":
                h_bank, h_asked = h_bank.to(module.device), h_asked.to(module.device)
            found |= probe_scores(h_bank, labels[bank], h_asked, labels[asked])
        return found

    def _until_signal(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the batches.

        Raises:
            Stopped: the process has received a signal.
        """
        for batch in batches:
            if signum := self.stop():
                raise Stopped(signum)
            yield batch


def probe_scores(h_nF: Tensor, y_n: Tensor, held_h_mF: Tensor, held_y_m: Tensor) -> dict[str, float]:
    """Fit a linear probe; return its accuracy ``linear_top1`` in [0, 1] and cross-entropy ``linear_loss`` in nats.

    Args:
        h_nF: features to fit.
        y_n: their classes, integers from 0.
        held_h_mF: held-out features, on which both scores are computed.
        held_y_m: their classes.

    Raises:
        ValueError: as in `fit_logistic`.
    """
    classes = int(torch.cat((y_n, held_y_m)).max()) + 1
    l2 = PROBE_L2 * max(h_nF.var(0, correction=0).mean().item(), 1e-12)
    # A smaller tolerance would hardly change a prediction.
    weights = fit_logistic(h_nF, y_n, l2=l2, classes=classes, tolerance=1e-3)
    logits_mC = held_h_mF @ weights.weight.T + weights.bias
    loss = torch.nn.functional.cross_entropy(logits_mC, held_y_m.to(logits_mC.device))
    return {"linear_top1": accuracy(weights, held_h_mF, held_y_m), "linear_loss": loss.item()}


def thinned(indices: Tensor, most: int) -> Tensor:
    """Return at most ``most`` of the indices, at equal distances."""
    return indices[:: -(-len(indices) // most) or 1]


def warn_if_collapsed(rank: float, width: int | None) -> None:
    """Warn if the effective rank of h is below 2: all features then have nearly one direction.

    Args:
        rank: the effective rank.
        width: feature_dim of the encoder, for the message.
    """
    if rank < 2:
        change = "lower optimizer.lr or raise loss.temperature"
        warn(f"the features have collapsed: effective rank {rank:.2f} of {width}; {change}")


@torch.no_grad()
def label_free(
    module: SimCLR,
    data: ViewsDataModule,
    *,
    most: int,
    k: int,
    wrap: Callable[[Iterable[Tensor]], Iterable[Tensor]] = iter,
) -> dict[str, float]:
    """Return the scores of `score_views` for held-out images, in evaluation mode, with the same two views every time.

    Args:
        module: does not change. If its loss has no ``temperature``, ``held_out_loss`` is left out.
        data: if it holds no images out, the first 64 training images are used.
        most: the maximum number of images.
        k: neighbors of the neighbor agreement.
        wrap: wraps the iterable of batches of indices, for example to raise an exception on a signal.
    """
    held_out = data.load().held_out
    held_out = thinned(held_out, most) if len(held_out) else torch.arange(min(64, len(data.load().train)))
    h: tuple[list[Tensor], list[Tensor]] = ([], [])
    z: tuple[list[Tensor], list[Tensor]] = ([], [])
    with evaluation_mode(module):
        for rows in wrap(held_out.split(256)):
            for view, x in enumerate(data.view_pairs(rows)):
                features = module(x.to(module.device))
                h[view].append(features.float())
                z[view].append(module.projector(features).float())
    h_a, h_b, z_a, z_b = (torch.cat(parts).cpu() for parts in (*h, *z))
    return score_views(h_a, h_b, z_a, z_b, temperature=_temperature(module), k=k)


def _temperature(module: L.LightningModule) -> float | None:
    value = getattr(module.loss, "temperature", None)
    return None if value is None else float(value)


def _data_of(trainer: L.Trainer) -> ViewsDataModule:
    data = views_data(trainer)
    assert data is not None
    return data


def _is_last(trainer: L.Trainer) -> bool:
    """Return whether the epoch that ends is the last of the run."""
    is_whole = trainer.current_epoch + 1 == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
    return is_whole or trainer.should_stop  # by a callback, such as a time limit


def _is_labeled(data: ViewsDataModule) -> bool:
    splits = data.load()
    return splits.train.labels is not None and len(splits.held_out) > 0
