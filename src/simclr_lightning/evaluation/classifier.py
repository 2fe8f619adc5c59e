"""Train a linear layer on h by SGD with labels: alone on a frozen encoder, or together with the encoder.

Shapes: b = images in a batch, S = side of an image in pixels, F = features of h, C = classes, n = training images.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_lightning.evaluation.features import evaluation_mode, extract
from simclr_lightning.optim import Schedule
from simclr_lightning.stopping import check


class Diverged(ValueError):
    """Raised if the weights became NaN or infinite in training; the message names the learning rate."""


class Classifier(L.LightningModule):
    """Classify images by a linear layer on h, trained with cross-entropy.

    The optimizer is SGD with Nesterov momentum 0.9 and no weight decay. The learning rate is lr * B / 256, with cosine
    decay to 0 and no warm-up. The linear layer starts at zero. With ``frozen=True`` this is the paper's linear
    evaluation (appendix B.6), with ``frozen=False`` its fine-tuning (appendix B.5).

    Args:
        encoder: maps images (b, 3, S, S) in [0, 1] to h (b, F).
        width: F.
        classes: C.
        labels: the class of every training image, (n,) int64.
        frozen: True trains the linear layer only: the encoder runs in evaluation mode and does not change. False also
            trains a copy of the encoder.
        lr: the base learning rate.
        batch_size: B, images per optimizer step.
    """

    labels: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: int,
        classes: int,
        labels: Tensor,
        frozen: bool,
        lr: float,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.lr = lr
        self.batch_size = batch_size
        # In a list, a frozen encoder is no submodule: parameters(), train() and to() of this module do not reach it.
        self._frozen = [encoder] if frozen else []
        self.encoder = None if frozen else copy.deepcopy(encoder).train().requires_grad_()
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("labels", labels, persistent=False)

    @property
    def body(self) -> nn.Module:
        """The encoder in use: the given one if it is frozen, else the copy that is trained."""
        return self._frozen[0] if self.frozen else cast(nn.Module, self.encoder)

    def forward(self, x_b3SS: Tensor) -> Tensor:
        """Return logits (b, C) of images (b, 3, S, S) in [0, 1]."""
        if self.frozen:
            with torch.no_grad(), evaluation_mode(self.body):
                h_bF = self.body(x_b3SS)
        else:
            h_bF = self.body(x_b3SS)
        logits_bC: Tensor = self.head(h_bF)
        return logits_bC

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of the views ``batch["x_a"]`` of the images ``batch["indices"]``."""
        return F.cross_entropy(self(batch["x_a"]), self.labels[batch["indices"]])

    def configure_optimizers(self) -> Any:
        """Return SGD and its cosine schedule, stepped once per optimizer step."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, nesterov=True)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = Schedule("linear", warmup_epochs=0)(
            optimizer,
            global_batch_size=self.batch_size,
            steps_per_epoch=int(self.trainer.num_training_batches),
            total_steps=total,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


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
        data: its batches hold "x_a", views (b, 3, S, S), and "indices" (b,), which index ``classifier.labels``.
        epochs: passes over the data.
        device: where to train.
        precision: Lightning's name, such as "bf16-mixed".
        after_step: called after every optimizer step, for example by a progress bar.

    Raises:
        Diverged: the weights became NaN or infinite.
        KeyboardInterrupt: Ctrl-C was pressed.
        Stopped: a signal has come in a program that notes signals (`stopping`).
    """
    classifier.body.to(device)
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
    )
    try:
        with warnings.catch_warnings():  # the held-out part is not used here
            warnings.filterwarnings("ignore", message=".*have no `validation_step`.*")
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
    whole = nn.Sequential(classifier.body, classifier.head)
    return extract(whole, batches, device=device, precision=precision).argmax(1)


class _AfterStep(L.Callback):
    """Calls a function after every optimizer step."""

    def __init__(self, after_step: Callable[[], None]) -> None:
        self.after_step = after_step

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        self.after_step()
        check()
