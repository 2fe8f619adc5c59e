"""NaN and infinity in gradients."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import lightning as L
import torch

from _faults.child import Failures
from _harness import quiet_lightning
from _images import squares
from simclr_lightning import LARS, NTXent, Projector, Schedule, SimCLR, ViewRecipe, ViewsDataModule, checkpoint, resnet
from simclr_lightning.callbacks import AtomicCheckpointIO, Checkpoints, Health, NonFiniteError
from simclr_lightning.data import Splits, TensorImages
from simclr_lightning.data.images import in_memory

BATCH, EPOCHS, STEPS = 16, 3, 12  # 80 images without their held-out tenth make 4 steps an epoch


class Poison(L.Callback):
    """Writes ``value`` into the gradient of one step."""

    def __init__(self, step: int, place: int, value: float) -> None:
        self.step, self.place, self.value = step, place, value

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == self.step:
            grad = next(pl_module.parameters()).grad
            assert grad is not None
            grad.view(-1)[self.place] = self.value


def splits() -> Splits:
    images, _ = squares(80)
    train = TensorImages(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), None)
    return in_memory("squares", train, None, class_names=None, seed=0)


def module() -> SimCLR:
    encoder = resnet(10, 0.125, "cifar")
    projector = Projector(encoder.feature_dim, hidden_dim=16, out_dim=8)
    optimizer = partial(LARS, lr=0.1)
    return SimCLR(encoder, projector, NTXent(0.5), optimizer, Schedule("constant"), global_batch_size=BATCH)


def trainer(run: Path, poison: Poison) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        callbacks=[poison, Health(), Checkpoints(run / "checkpoints")],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def nan(trials: int, folder: Path) -> Failures:
    """Put NaN or infinity into one step's gradient: an error that names the step, and only finite checkpoints."""
    recipe = ViewRecipe(size=8, strength=0.5, blur=0.0)
    for trial in range(trials):
        step, run = trial % STEPS, folder / f"run{trial}"
        poison = Poison(step, trial % 5, (math.nan, math.inf, -math.inf)[trial % 3])
        data = ViewsDataModule(lambda path: splits(), batch_size=BATCH, recipe=recipe)
        try:
            with quiet_lightning():
                trainer(run, poison).fit(module(), datamodule=data)
            yield f"trial {trial}: the training went on"
        except NonFiniteError as error:
            if f"at step {step} " not in str(error):
                yield f"trial {trial}: {error}"
        for file in run.glob("checkpoints/*.ckpt"):
            if not all(x.isfinite().all() for x in checkpoint.load(file)["state_dict"].values()):
                yield f"trial {trial}: {file.name} is not finite"
