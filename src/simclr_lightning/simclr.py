"""Train SimCLR: the LightningModule, and the protocols of the loss and the schedule that it takes.

Shapes: N images of this process and step, B images in one forward pass, S side of a view, D the width of z.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from simclr_lightning.caching import Views, cached_projections, micro_batches
from simclr_lightning.encoders.check import pooled
from simclr_lightning.global_batch import check_micro_batch
from simclr_lightning.optim import parameter_groups

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Make an optimizer from parameter groups: any torch optimizer class, with its options bound by `functools.partial`."""

# Name of a metric in the result of `SimCLR.training_step` -> optional attribute of the loss's output.
METRICS = {"train/contrastive_accuracy": "accuracy", "train/contrastive_entropy": "entropy"}


class ScheduleFactory(Protocol):
    """Make the learning-rate scheduler of a run when its length is known."""

    def __call__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        global_batch_size: int,
        steps_per_epoch: int,
        total_steps: int,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the scheduler; Lightning steps it after every optimizer step."""
        ...


class LossOutput(Protocol):
    """Hold the loss, with a gradient, as a scalar Tensor."""

    @property
    def loss(self) -> Tensor:
        """The value to minimize, a Tensor of shape ()."""
        ...


class PairLoss(Protocol):
    """Compute the loss of N pairs of projections, with row i of z_a and z_b from one image. `NTXent` is one.

    The result is a Tensor of shape (), or a `LossOutput` that holds it. These attributes are optional:

    - ``accuracy`` and ``entropy`` of the output, Tensors of shape (): `SimCLR` returns them as metrics.
    - ``temperature`` of the loss, a float: the divisor of cosines, for scores and measurements at that temperature.
    - ``gather`` of the loss, a bool: False makes it communicate with no other rank, as when a copy is measured.

    Each rank calls the loss on its own rows, and DDP averages the gradients over ranks. A loss that compares rows of
    different ranks must gather them itself. It may be an ``nn.Module`` with parameters, which are then trained too.

    >>> def alignment(z_a, z_b):
    ...     return (z_a - z_b).square().sum(dim=1).mean()
    >>> from simclr_lightning.optim import Schedule
    >>> encoder, projector = nn.Flatten(), nn.Linear(192, 8)
    >>> module = SimCLR(encoder, projector, alignment, torch.optim.SGD, Schedule(), global_batch_size=4)
    >>> x_a, x_b = torch.rand(2, 4, 3, 8, 8)
    >>> sorted(module.training_step({"x_a": x_a, "x_b": x_b}, 0))
    ['loss', 'train/loss']
    """

    def __call__(self, z_a: Tensor, z_b: Tensor, /) -> Tensor | LossOutput:
        """Return the loss of z_a and z_b, each (N, D)."""
        ...


class _BareLoss(NamedTuple):
    """The output of a loss that returned a Tensor."""

    loss: Tensor


class SimCLR(L.LightningModule):
    """Train an encoder on two views of each image (paper section 2.1 and Algorithm 1).

    Args:
        encoder: f, maps images (B, 3, S, S) in [0, 1] to features h (B, feature_dim).
        projector: g, maps h to projections z (B, D).
        loss: maps (z_a, z_b), each (N, D), to a scalar; see `PairLoss`.
        optimizer: makes the optimizer from the groups of `parameter_groups`; its ``lr`` is the base rate.
        schedule: makes the scheduler, which scales the base rate with the global batch; see `ScheduleFactory`.
        global_batch_size: images in one optimizer step, over all devices and nodes.
        micro_batch_size: images in one forward pass, over all devices and nodes. The gradient stays that of the whole
            batch (see `caching`). None for the whole batch.

    Raises:
        ValueError: the micro-batches do not divide the global batch or, when training starts, cannot be split evenly
            over the devices.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        loss: PairLoss,
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
        self.loss: Any = loss  # Any: callbacks read optional attributes
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self._compiled: Callable[[Tensor], Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Check that micro-batches can be split evenly over the devices of the trainer."""
        if self.micro_batch_size is not None:
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

    def contrast(self, x_a: Tensor, x_b: Tensor) -> LossOutput:
        """Return the loss of both views of N images, each (N, 3, S, S); one forward pass has both, for BatchNorm."""
        z_a, z_b = (self._compiled or self.project)(torch.cat((x_a, x_b))).chunk(2)
        return self._compare(z_a, z_b)

    def contrast_cached(self, views: Views, count: int) -> LossOutput:
        """Return the loss of both views of ``count`` images, in the memory of one micro-batch: `cached_projections`."""
        parts = self.global_batch_size // (self.micro_batch_size or self.global_batch_size)
        z_a, z_b = cached_projections(self._compiled or self.project, self, views, micro_batches(count, parts))
        return self._compare(z_a, z_b)

    def _compare(self, z_a: Tensor, z_b: Tensor) -> LossOutput:
        found = self.loss(z_a, z_b)
        out: LossOutput = _BareLoss(found) if isinstance(found, Tensor) else found
        loss = getattr(out, "loss", None)
        if not isinstance(loss, Tensor) or loss.ndim:
            kind = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(found).__name__
            raise ValueError(f"the loss returned {kind}; it must return a Tensor of shape (), or an object with .loss")
        return out

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one step, with metrics under the names that `StepMetrics` logs.

        Args:
            batch: the views ``x_a`` and ``x_b``, each (N, 3, S, S). Instead of them it may hold ``views``, a function
                that makes both views of some rows, and ``indices`` (N,).
            batch_idx: unused.

        Returns:
            ``loss``, and detached: ``train/loss`` and those of `METRICS` that the loss computes.

        Raises:
            ValueError: the loss returned no scalar.
        """
        if "views" in batch:
            out = self.contrast_cached(batch["views"], len(batch["indices"]))
        elif self.micro_batch_size is not None:
            x_a, x_b = batch["x_a"], batch["x_b"]
            out = self.contrast_cached(lambda rows: (x_a[rows], x_b[rows]), len(x_a))
        else:
            out = self.contrast(batch["x_a"], batch["x_b"])
        found = {name: getattr(out, attribute, None) for name, attribute in METRICS.items()}
        metrics = {name: value.detach() for name, value in found.items() if value is not None}
        return {"loss": out.loss, "train/loss": out.loss.detach(), **metrics}

    def configure_optimizers(self) -> Any:
        """Return the optimizer of all parameters and its scheduler, which is stepped after every optimizer step."""
        self.trainer.fit_loop.setup_data()  # else, with max_steps alone, the length of an epoch is not known yet
        optimizer = self.make_optimizer(parameter_groups(self))
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = self.make_schedule(
            optimizer,
            global_batch_size=self.global_batch_size,
            steps_per_epoch=int(self.trainer.num_training_batches),
            total_steps=total,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
