"""Train a linear layer on h by SGD with labels: alone on a frozen encoder, or together with the encoder.

Shapes: b = images in a batch, S = side of an image in pixels, F = features of h, C = classes, n = training images.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_lightning.batches import read_images
from simclr_lightning.encoders.check import feature_dim, pooled
from simclr_lightning.evaluation.features import evaluation_mode, extract
from simclr_lightning.optim import Schedule
from simclr_lightning.stopping import check
from simclr_lightning.training_steps import StepLog, loaded_batch, training_length


class Diverged(ValueError):
    """Raised if the weights became NaN or infinite in training; the message names the learning rate."""


class Classifier(L.LightningModule, ABC):
    """Classify images by a linear layer on h, trained with cross-entropy: a `LinearProbe` or a `FineTuner`.

    A batch is ``(x, y)``, or a dictionary with the images as "x" or "x_a" and the classes as "y". Each step logs
    ``train/loss``; ``validate`` and ``test`` log ``val/loss`` and ``val/accuracy``, ``test/loss`` and
    ``test/accuracy``; ``predict`` returns classes. The optimizer is SGD with Nesterov momentum 0.9 and no weight decay.
    The learning rate is lr * B / 256, with cosine decay to 0 and no warm-up. The linear layer starts at zero.

    A checkpoint holds the numbers below: ``load_from_checkpoint(path, encoder=...)``.

    Args:
        encoder: maps images (b, 3, S, S) in [0, 1] to h (b, F), or to feature maps, which are averaged.
        classes: C.
        lr: the base learning rate.
        batch_size: B, images per optimizer step on all devices; None: what the loader makes.
        width: F; None: `feature_dim` of the encoder.
        labels: the class of every image, (n,) int64, for batches with "indices"; in place of their "y".
    """

    labels: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        *,
        lr: float,
        batch_size: int | None = None,
        width: int | None = None,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        width = feature_dim(encoder) if width is None else width
        self.lr = lr
        self.batch_size = batch_size
        self._attach(encoder)
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("labels", labels, persistent=False)
        self._step_log = StepLog()
        self.save_hyperparameters({"classes": classes, "lr": lr, "batch_size": batch_size, "width": width})

    @abstractmethod
    def _attach(self, encoder: nn.Module) -> None:
        """Store the encoder or a copy of it."""

    @property
    @abstractmethod
    def body(self) -> nn.Module:
        """The encoder in use."""

    @abstractmethod
    def features(self, x_b3SS: Tensor) -> Tensor:
        """Return h (b, F) of images (b, 3, S, S) in [0, 1]."""

    def forward(self, x_b3SS: Tensor) -> Tensor:
        """Return logits (b, C) of images (b, 3, S, S) in [0, 1]."""
        logits_bC: Tensor = self.head(self.features(x_b3SS))
        return logits_bC

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch."""
        x_b3SS, y_b = self._read(batch)
        loss = F.cross_entropy(self(x_b3SS), y_b)
        metrics = {"train/loss": loss.detach()}
        self._step_log.log(self, metrics, loss="train/loss", count=len(y_b), every_metric=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the cross-entropy and the accuracy in [0, 1] of a batch."""
        self._score(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the cross-entropy and the accuracy in [0, 1] of a batch."""
        self._score(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the classes (b,) int64 of a batch: a Tensor of images, ``(x, y)``, or ``{"x": ...}``."""
        predicted_b: Tensor = self(read_images(batch)).argmax(1)
        return predicted_b

    def configure_optimizers(self) -> Any:
        """Return SGD and its cosine schedule, stepped once per optimizer step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)
        total, in_epoch = training_length(self.trainer)
        batch, together = self.batch_size, self.trainer.accumulate_grad_batches
        if batch is None:
            if (found := loaded_batch(self.trainer)) is None:
                raise ValueError(f"the loader has no batch_size: pass it to {type(self).__name__}")
            batch = found * together
        schedule = Schedule("linear", warmup_epochs=0)
        scheduler = schedule(optimizer, global_batch_size=batch, steps_per_epoch=in_epoch, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _score(self, batch: Any, stage: str) -> None:
        x_b3SS, y_b = self._read(batch)
        logits_bC = self(x_b3SS)
        found = {"loss": F.cross_entropy(logits_bC, y_b), "accuracy": (logits_bC.argmax(1) == y_b).float().mean()}
        values = {f"{stage}/{name}": value for name, value in found.items()}
        self.log_dict(values, on_epoch=True, batch_size=len(y_b), sync_dist=True)

    def _read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the images and the classes of a batch."""
        if isinstance(batch, Mapping):
            y = batch.get("y") if self.labels is None else self.labels[batch["indices"]]
            batch = (batch.get("x", batch.get("x_a")), y)
        x, y = (*batch, None)[:2] if isinstance(batch, list | tuple) else (batch, None)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or y.ndim != 1:
            raise ValueError(f'{type(self).__name__} needs batches (x, y), or {{"x": ..., "y": ...}}')
        return x, y


class LinearProbe(Classifier):
    """Train a linear layer on the features of a frozen encoder (paper, appendix B.6), with any Lightning Trainer.

    The encoder runs in evaluation mode, without gradients, and does not change; it moves to the device of this module.
    It is no part of the checkpoint. The arguments are those of `Classifier`.

    >>> probe = LinearProbe(nn.Conv2d(3, 8, 3), classes=10)
    >>> probe(torch.rand(4, 3, 8, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(self, encoder: nn.Module, classes: int, *, lr: float = 0.1, **options: Any) -> None:
        super().__init__(encoder, classes, lr=lr, **options)

    def _attach(self, encoder: nn.Module) -> None:
        # In a list, the encoder is no submodule: parameters(), train() and state_dict() of this module do not reach it.
        self._frozen = [encoder]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.body._apply(fn)
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    @property
    def body(self) -> nn.Module:
        """The given encoder."""
        return self._frozen[0]

    def features(self, x_b3SS: Tensor) -> Tensor:
        """Return h (b, F) of images (b, 3, S, S) in [0, 1], without a gradient."""
        with torch.no_grad(), evaluation_mode(self.body):
            return pooled(self.body(x_b3SS))


class FineTuner(Classifier):
    """Train a copy of an encoder and a linear layer on it (paper, appendix B.5), with any Lightning Trainer.

    The arguments are those of `Classifier`.

    >>> tuner = FineTuner(nn.Conv2d(3, 8, 3), classes=10)
    >>> len(list(tuner.parameters())), tuner.lr
    (4, 0.05)
    """

    def __init__(self, encoder: nn.Module, classes: int, *, lr: float = 0.05, **options: Any) -> None:
        super().__init__(encoder, classes, lr=lr, **options)

    def _attach(self, encoder: nn.Module) -> None:
        self.encoder = copy.deepcopy(encoder).train().requires_grad_()

    @property
    def body(self) -> nn.Module:
        """The copy that is trained."""
        return self.encoder

    def features(self, x_b3SS: Tensor) -> Tensor:
        """Return h (b, F) of images (b, 3, S, S) in [0, 1]."""
        return pooled(self.encoder(x_b3SS))


def fit_classifier(
    classifier: Classifier,
    data: L.LightningDataModule,
    *,
    epochs: int,
    device: torch.device,
    precision: str = "32-true",
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train the classifier in place.

    Args:
        classifier: not trained before.
        data: makes batches that the classifier takes.
        epochs: passes over the data.
        device: where to train.
        precision: Lightning's name, such as "bf16-mixed".
        after_step: called after every optimizer step, for example by a progress bar.

    Raises:
        Diverged: the weights became NaN or infinite.
        KeyboardInterrupt: Ctrl-C was pressed.
        Stopped: a signal has come in a program that notes signals (`stopping`).
    """
    trainer = L.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=cast(Any, precision),
        max_epochs=epochs,
        callbacks=[_AfterStep(after_step)],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    try:
        trainer.fit(classifier, datamodule=data)
    except SystemExit as stop:  # Lightning turns Ctrl-C into SystemExit
        raise KeyboardInterrupt from stop
    if not torch.stack([p.isfinite().all() for p in classifier.parameters()]).all():
        raise Diverged(f"the training on labels diverged with lr {classifier.lr}: choose a lower lr")


def predict_classes(
    classifier: Classifier, batches: Iterable[Tensor], *, device: torch.device, precision: str | None = None
) -> Tensor:
    """Return the predicted classes of all images, (n,) int64; the classifier does not change.

    Args:
        classifier: trained.
        batches: images (b, 3, S, S) in [0, 1].
        device: where to compute.
        precision: as in `extract`.
    """
    return extract(classifier, batches, device=device, precision=precision).argmax(1)


class _AfterStep(L.Callback):
    """Calls a function after every optimizer step."""

    def __init__(self, after_step: Callable[[], None]) -> None:
        self.after_step = after_step

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        self.after_step()
        check()
