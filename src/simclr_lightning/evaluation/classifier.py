"""A linear layer on h, trained by SGD on labels: alone on a frozen encoder, or together with it.

Shapes: b = images in a batch, S = side in pixels, F = width of h, C = classes, n = training images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_lightning.evaluation.features import evaluation_mode, extract
from simclr_lightning.optim import Schedule


class Diverged(ValueError):
    """A training that ended in numbers that are none; the message names the rate."""


class Classifier(L.LightningModule):
    """Image -> logits, cross-entropy, SGD with Nesterov momentum 0.9, lr * B / 256, cosine to 0, no weight decay.

    The paper's linear evaluation (``frozen``; appendix B.6: no warm-up, BatchNorm in evaluation mode) and its
    fine-tuning (appendix B.5). The linear layer starts at zero.

    Args:
        encoder: (b, 3, S, S) in [0, 1] -> h (b, width). Frozen, it is the one given and nothing of it changes;
            otherwise a copy of it is trained.
        width: F.
        classes: C.
        labels: (n,) int64, the class of every training image.
        frozen: train the linear layer alone.
        lr: the base rate.
        batch_size: B, for the linear rule.
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
        # A frozen encoder is no submodule: no optimiser, mode or move of this module reaches it.
        self._frozen = [encoder] if frozen else []
        self.encoder = None if frozen else copy.deepcopy(encoder).train().requires_grad_()
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("labels", labels, persistent=False)

    @property
    def body(self) -> nn.Module:
        """What makes h: the encoder that was given, or the copy that is trained."""
        return self._frozen[0] if self.frozen else cast(nn.Module, self.encoder)

    def forward(self, x_b3SS: Tensor) -> Tensor:
        """Images in [0, 1] to logits (b, C)."""
        if self.frozen:
            with torch.no_grad(), evaluation_mode(self.body):
                h_bF = self.body(x_b3SS)
        else:
            h_bF = self.body(x_b3SS)
        logits_bC: Tensor = self.head(h_bF)
        return logits_bC

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of the view ``batch["x_a"]`` of the images ``batch["indices"]``."""
        return F.cross_entropy(self(batch["x_a"]), self.labels[batch["indices"]])

    def configure_optimizers(self) -> Any:
        """SGD and its per-step cosine."""
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
    """Train the classifier, in place.

    Args:
        classifier: new.
        data: gives batches with "x_a" (b, 3, S, S) and "indices" (b,), numbers of ``classifier.labels``.
        epochs: passes over the data.
        device: where to train.
        precision: Lightning's name of it.
        after_step: called after every optimiser step, for a progress bar.

    Raises:
        Diverged: the weights became NaN or infinite.
        KeyboardInterrupt: Ctrl-C.
    """
    classifier.body.to(device)
    watch = _Watch(after_step)
    trainer = L.Trainer(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=cast(Any, precision),
        max_epochs=epochs,
        callbacks=[watch],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(classifier, datamodule=data)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop
    if not torch.stack([p.isfinite().all() for p in classifier.parameters()]).all():
        raise Diverged(f"the training on labels diverged with lr {classifier.lr}: take a lower one")


def predict_classes(
    classifier: Classifier, batches: Iterable[Tensor], *, device: torch.device, precision: str | None = None
) -> Tensor:
    """Batches (b, 3, S, S) in [0, 1] -> classes (n,) int64; nothing of the classifier changes."""
    whole = nn.Sequential(classifier.body, classifier.head)
    return extract(whole, batches, device=device, precision=precision).argmax(1)


class _Watch(L.Callback):
    """Tells a progress bar of every step."""

    def __init__(self, after_step: Callable[[], None]) -> None:
        self.after_step = after_step

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        self.after_step()
