"""Train SimCLR: the LightningModule.

Shapes: N images of this process and step, B images in one forward pass, S side of a view, D the width of z.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any, Self, cast

import lightning as L
import torch
from torch import Tensor, nn

from simclr_lightning import distributed, parts
from simclr_lightning.batches import image_count, read_images, read_views
from simclr_lightning.caching import Views, cached_projections, micro_batches
from simclr_lightning.encoders.check import check_encoder, pooled
from simclr_lightning.global_batch import check_micro_batch, check_same_batch
from simclr_lightning.optim import (
    AnySchedule,
    OptimizerFactory as OptimizerFactory,
    ScheduleFactory as ScheduleFactory,
    make_scheduler,
    parameter_groups,
)
from simclr_lightning.pair_loss import LossOutput as LossOutput, PairLoss as PairLoss, compare
from simclr_lightning.run_folder import read_saved_config
from simclr_lightning.training_steps import StepLog, loaded_batch, training_length

# Name of a metric -> attribute of the loss's output; all but the loss are optional.
METRICS = {"loss": "loss", "contrastive_accuracy": "accuracy", "contrastive_entropy": "entropy"}


class SimCLR(L.LightningModule):
    """Train an encoder on two views of each image (paper section 2.1 and Algorithm 1), with any Lightning Trainer.

    A batch is ``{"x_a", "x_b"}``, ``(x_a, x_b)`` or ``((x_a, x_b), y)``: see `read_views`. Each step logs
    ``train/loss``, and those of ``train/contrastive_accuracy`` and ``train/contrastive_entropy`` that the loss returns;
    ``validate`` and ``test`` log the same of held-out views as ``val/...`` and ``test/...``; ``predict`` returns h.

    Args:
        encoder: f, maps images (B, 3, S, S) in [0, 1] to features h (B, feature_dim), or to feature maps, which are
            averaged over their positions. It is checked before the first step.
        projector: g, maps h to projections z (B, D).
        loss: maps (z_a, z_b), each (N, D), to a scalar; see `PairLoss`.
        optimizer: makes the optimizer from the groups of `parameter_groups`; its ``lr`` is the base rate.
        schedule: makes the scheduler, stepped after every optimizer step; see `AnySchedule`. None: a constant rate.
        global_batch_size: images that one loss compares, over all devices and nodes. None: what the loader makes. The
            schedule gets it times the Trainer's ``accumulate_grad_batches``.
        micro_batch_size: images in one forward pass, over all devices and nodes. The gradient stays that of the whole
            batch (see `caching`). None for the whole batch.

    Raises:
        ValueError: the micro-batches do not divide the global batch; or, when training starts, they cannot be split
            evenly over the devices, the loader makes another global batch, or the encoder fails `check_encoder`.

    >>> from functools import partial
    >>> projector = nn.Linear(192, 8)
    >>> module = SimCLR(nn.Flatten(), projector, lambda a, b: (a - b).square().mean(), partial(torch.optim.SGD, lr=0.1))
    >>> x_a, x_b = torch.rand(2, 4, 3, 8, 8)
    >>> sorted(module.training_step(((x_a, x_b), torch.arange(4)), 0))
    ['loss', 'train/loss']
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        loss: PairLoss,
        optimizer: OptimizerFactory,
        schedule: AnySchedule = None,
        *,
        global_batch_size: int | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if micro_batch_size is not None and global_batch_size is not None:
            check_micro_batch(micro_batch_size, batch_size=global_batch_size)
        self.encoder = encoder
        self.projector = projector
        self.loss: Any = loss  # Any: callbacks read optional attributes
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.logs_steps = True  # False: a callback, such as `StepMetrics`, logs the values of the steps
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._checked = False
        self._step_log = StepLog()
        made = zip(parts.PARTS, (encoder, projector, loss, optimizer, schedule), strict=True)
        sizes = {"global_batch_size": global_batch_size, "micro_batch_size": micro_batch_size}
        self.save_hyperparameters({**{name: parts.describe(part, name) for name, part in made}, **sizes})

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **given: Any,
    ) -> Self:
        """Return the module of a checkpoint, on the CPU unless ``map_location`` names a device.

        Those parts that came from this package and from torch are made again. A checkpoint can name only a list of
        factories (see `parts`), so a file from a stranger runs no code. A run of an older version saved its parts in
        its configuration, in the folder above the checkpoint's.

        Args:
            checkpoint_path: a file that any Trainer saved.
            map_location: where the weights are loaded to, as in ``torch.load``.
            hparams_file: not supported.
            strict: whether the keys of the weights must be the same; None: True.
            weights_only: must be True or None.
            given: arguments of the class, which replace those of the checkpoint.

        Raises:
            ValueError: a part is neither in the checkpoint nor given, or the file is no checkpoint of plain values.
        """
        if weights_only is False or hparams_file is not None:
            raise ValueError("weights_only=False and hparams_file are not supported; pass the arguments of the class")
        saved = parts.read_checkpoint(checkpoint_path, map_location)
        if "hyper_parameters" not in saved and isinstance(checkpoint_path, str | PathLike):  # of an older version
            config = read_saved_config(Path(checkpoint_path).absolute().parents[1])
            saved["hyper_parameters"] = parts.of_configuration(config, saved["state_dict"])
        own = inspect.signature(cls).parameters
        passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values())
        names = {*own, *(inspect.signature(SimCLR).parameters if passed_on else ())}
        module = cls(**parts.arguments(saved, given, accepted=names, path=checkpoint_path))
        module.on_load_checkpoint(saved)
        module.load_state_dict(saved["state_dict"], strict=strict is not False)
        return module.to(next(iter(saved["state_dict"].values())).device)

    def setup(self, stage: str) -> None:
        """Check that micro-batches can be split evenly over the devices of the trainer."""
        if self.micro_batch_size is not None and self.global_batch_size is not None:
            size, batch = self.micro_batch_size, self.global_batch_size
            check_micro_batch(size, batch_size=batch, devices=self.trainer.world_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features h (B, feature_dim) of images (B, 3, S, S) in [0, 1], without the projector."""
        return pooled(self.encoder(x_BCHW))

    def project(self, x_BCHW: Tensor) -> Tensor:
        """Return projections z (B, D) of images (B, 3, S, S) in [0, 1]."""
        z: Tensor = self.projector(pooled(self.encoder(x_BCHW)))
        return z

    def compile_network(self, **options: Any) -> None:
        """Compile `project` for training with `torch.compile` and its ``options``.

        Evaluation, whose batches have other sizes, runs the modules without compilation. Checkpoints keep their keys.
        """
        self._compiled = torch.compile(self.project, dynamic=False, **options)

    def __getstate__(self) -> dict[str, Any]:
        # A copy must not share the compiled function, which holds the weights of the original.
        return {**super().__getstate__(), "_compiled": None}

    def contrast(self, *views: Tensor, labels: Tensor | None = None) -> LossOutput:
        """Return the loss of the views of N images, each (N, 3, S, S); one forward pass has all, for BatchNorm."""
        network = self._compiled if self._compiled is not None and self.training else self.project
        return compare(self.loss, network(torch.cat(views)).chunk(len(views)), labels)

    def contrast_cached(self, views: Views, count: int, labels: Tensor | None = None) -> LossOutput:
        """Return the loss of the views of ``count`` images, in the memory of one micro-batch: `cached_projections`."""
        batch = self.global_batch_size or count * distributed.world_size()
        rows = micro_batches(count, -(-batch // (self.micro_batch_size or batch)))
        z = cached_projections(self._compiled or self.project, self, views, rows)
        return compare(self.loss, z, labels)

    def on_train_start(self) -> None:
        """Check the encoder again at the first batch, and warn once if gradients are accumulated."""
        self._checked = False
        if self.trainer.accumulate_grad_batches > 1:
            warnings.warn(
                "accumulate_grad_batches adds no negatives: each loss compares the images of one batch. For the exact "
                "gradient of a larger batch, use a larger batch with SimCLR(micro_batch_size=...)",
                stacklevel=2,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the encoder on a few images of the first batch, before the first step."""
        if self._checked:
            return
        self._checked = True
        x_a = batch["views"](slice(0, 4))[0] if _is_lazy(batch) else read_views(batch).views[0]
        if any(p.requires_grad for p in self.encoder.parameters()):
            with self.trainer.precision_plugin.forward_context():
                check_encoder(self.encoder, x_a[:4])

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one step, and log it with its metrics.

        Args:
            batch: see `read_views`. Instead of views it may hold ``views``, a function that makes the views of some
                rows, and ``indices`` (N,).
            batch_idx: unused.

        Returns:
            ``loss``, and detached: ``train/loss`` and those of the other metrics that the loss computes.

        Raises:
            ValueError: the batch has no views, or the loss does not take them or returned no scalar.
        """
        if _is_lazy(batch):
            out = self.contrast_cached(batch["views"], len(batch["indices"]), batch.get("y"))
        else:
            views, labels = read_views(batch)
            if self.micro_batch_size is None:
                out = self.contrast(*views, labels=labels)
            else:
                out = self.contrast_cached(lambda rows: tuple(x[rows] for x in views), len(views[0]), labels)
        metrics = {f"train/{name}": value for name, value in _metrics(out).items()}
        if self._current_fx_name is not None:  # called by a trainer
            self._step_log.log(self, metrics, loss="train/loss", count=image_count(batch), every_metric=self.logs_steps)
        return {"loss": out.loss, **metrics}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the loss of held-out views in evaluation mode, and log it with its metrics as ``val/...``."""
        return self._held_out_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the loss of held-out views in evaluation mode, and log it with its metrics as ``test/...``."""
        return self._held_out_step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return features h (N, feature_dim) of a batch: a Tensor of images, ``(x, y)``, or ``{"x": ...}``."""
        return cast(Tensor, self(read_images(batch)))

    def configure_optimizers(self) -> Any:
        """Return the optimizer of all parameters and its scheduler, which is stepped after every optimizer step.

        Raises:
            ValueError: the loader makes another global batch, or the length of the training is unknown.
        """
        found, devices = loaded_batch(self.trainer), self.trainer.world_size
        if self.global_batch_size is None:
            self.global_batch_size = found
            self.setup("fit")
        elif found is not None:
            check_same_batch(self.global_batch_size, found, devices=devices)
        optimizer = self.make_optimizer(parameter_groups(self))
        if self.make_schedule is None:
            return optimizer
        if self.global_batch_size is None:
            raise ValueError("the loader has no batch_size: pass SimCLR(global_batch_size=...) for the schedule")
        total, in_epoch = training_length(self.trainer)
        scheduler = make_scheduler(
            self.make_schedule,
            optimizer,
            global_batch_size=self.global_batch_size * self.trainer.accumulate_grad_batches,
            steps_per_epoch=in_epoch,
            total_steps=total,
        )
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _held_out_step(self, batch: Any, stage: str) -> Tensor:
        views, labels = read_views(batch)
        out = self.contrast(*views, labels=labels)
        values = {f"{stage}/{name}": value for name, value in _metrics(out).items()}
        self.log_dict(values, on_epoch=True, batch_size=len(views[0]), sync_dist=True)
        return out.loss


def _is_lazy(batch: Any) -> bool:
    return isinstance(batch, Mapping) and callable(batch.get("views"))


def _metrics(out: LossOutput) -> dict[str, Tensor]:
    found = {name: getattr(out, attribute, None) for name, attribute in METRICS.items()}
    return {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}
