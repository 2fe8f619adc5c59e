"""SimCLR as a LightningModule: the wiring of encoder, projector, loss, optimiser and schedule.

Legend of shapes: N images of this process and step, 2N views, m images of a micro-batch, D the projector's output size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from simclr_lightning.caching import Views, cached_projections, micro_batches
from simclr_lightning.global_batch import check_micro_batch
from simclr_lightning.ntxent import NTXent, NTXentOutput
from simclr_lightning.optim import parameter_groups

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class ScheduleFactory(Protocol):
    """Makes the per-step learning-rate scheduler once the length of the run is known."""

    def __call__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        global_batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the scheduler, stepped once per optimiser step."""
        ...


class SimCLR(L.LightningModule):
    """Two views in, NT-Xent out (paper, section 2.1 and algorithm 1).

    Args:
        encoder: f, maps (B, 3, S, S) in [0, 1] to h (B, feature_dim).
        projector: g, maps h to z (B, D).
        loss: maps (z_a, z_b), each (N, D), to an ``NTXentOutput``.
        optimizer: makes the optimiser from the parameter groups of `parameter_groups`; its ``lr`` is the base rate.
        schedule: makes the scheduler; it scales the base rate with the global batch.
        global_batch_size: images over all devices and nodes in one optimiser step.
        micro_batch_size: images over all devices and nodes that go through the network at once; the gradient stays that
            of the whole batch (see `caching`). None: the whole batch.

    Raises:
        ValueError: for micro-batches that the batch or, when training starts, the devices cannot share.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        loss: NTXent,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        *,
        global_batch_size: int,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if micro_batch_size is not None:
            check_micro_batch(micro_batch_size, batch_size=global_batch_size)
        self.encoder = encoder
        self.projector = projector
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Check the micro-batches against the devices."""
        if self.micro_batch_size is not None:
            size, batch = self.micro_batch_size, self.global_batch_size
            check_micro_batch(size, batch_size=batch, devices=self.trainer.world_size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to h (B, feature_dim); the projector is left out."""
        h: Tensor = self.encoder(x_BCHW)
        return h

    def project(self, x_BCHW: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to z (B, D), as in training."""
        z: Tensor = self.projector(self.encoder(x_BCHW))
        return z

    def compile_network(self, **options: Any) -> None:
        """Train on a compiled `project`; ``options`` are `torch.compile`'s.

        The modules stay what they are: evaluation, whose batches have other sizes, runs them as they stand, and a
        checkpoint has the same keys.
        """
        self._compiled = torch.compile(self.project, dynamic=False, **options)

    def __getstate__(self) -> dict[str, Any]:
        # A copy must not train the original, whose weights the compiled function holds.
        return {**super().__getstate__(), "_compiled": None}

    def contrast(self, x_a: Tensor, x_b: Tensor) -> NTXentOutput:
        """NT-Xent of two views, each (N, 3, S, S): one forward pass over all 2N, so BatchNorm sees both."""
        z_a, z_b = (self._compiled or self.project)(torch.cat((x_a, x_b))).chunk(2)
        out: NTXentOutput = self.loss(z_a, z_b)
        return out

    def contrast_cached(self, views: Views, count: int) -> NTXentOutput:
        """NT-Xent of both views of ``count`` images, at the memory of one micro-batch: see `cached_projections`."""
        parts = self.global_batch_size // (self.micro_batch_size or self.global_batch_size)
        z_a, z_b = cached_projections(self._compiled or self.project, self, views, micro_batches(count, parts))
        out: NTXentOutput = self.loss(z_a, z_b)
        return out

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """One step on ``batch["x_a"]`` and ``batch["x_b"]``; `StepMetrics` logs what rides along, detached.

        Instead of them, ``batch["views"]`` may be a function that makes both views of some of ``batch["indices"]``.
        """
        if "views" in batch:
            out = self.contrast_cached(batch["views"], len(batch["indices"]))
        elif self.micro_batch_size is not None:
            x_a, x_b = batch["x_a"], batch["x_b"]
            out = self.contrast_cached(lambda rows: (x_a[rows], x_b[rows]), len(x_a))
        else:
            out = self.contrast(batch["x_a"], batch["x_b"])
        return {
            "loss": out.loss,
            "train/loss": out.loss.detach(),
            "train/contrastive_accuracy": out.accuracy,
            "train/contrastive_entropy": out.entropy,
        }

    def configure_optimizers(self) -> Any:
        """The optimiser over encoder and projector and its per-step schedule."""
        self.trainer.fit_loop.setup_data()  # with max_steps alone Lightning would not know the epoch's length yet
        optimizer = self.make_optimizer(parameter_groups(self))
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_schedule(
            optimizer,
            global_batch_size=self.global_batch_size,
            steps_per_epoch=int(self.trainer.num_training_batches),
            total_steps=total,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
