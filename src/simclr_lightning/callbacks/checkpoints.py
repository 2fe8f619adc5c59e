"""Decide when a run saves checkpoints; `simclr_lightning.checkpoint` writes the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from simclr_lightning import checkpoint as files
from simclr_lightning.callbacks.online import OnlineScore
from simclr_lightning.callbacks.rows import views_data


class Checkpoints(L.Callback):
    """Write last.ckpt (and previous.ckpt) at the end of epochs and between steps, and best.ckpt by the online score.

    With a `ViewsDataModule`, a resumed run continues at the next image, also inside an epoch. With other loaders it
    continues as Lightning does, which is exact at the end of an epoch.

    Args:
        folder: where the files are written.
        online: its score decides which checkpoint is best.ckpt; must come earlier in the list. None: no best.ckpt.
        every_n_epochs: epochs between two saves.
        every_n_steps: optimizer steps between two saves inside an epoch; None: none.

    Raises:
        ValueError: in ``setup``, the trainer does not have the plugin `AtomicCheckpointIO`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        online: OnlineScore | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
    ) -> None:
        self.folder = folder
        self.online = online
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.best: float | None = None

    @property
    def last(self) -> Path:
        """The path of last.ckpt."""
        return self.folder / files.LAST

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best = state_dict["best"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that the files are written atomically."""
        if stage == "fit" and not isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            raise ValueError("Checkpoints needs its writer: pass Trainer(plugins=[AtomicCheckpointIO()])")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set the position of Lightning's loops from the number of optimizer steps."""
        data = views_data(trainer)
        if data is None or trainer.accumulate_grad_batches > 1:
            return
        batches = data.samples_at(int(checkpoint["global_step"])) // data.batch_size
        files.rewind(checkpoint, batches=batches, steps_per_epoch=data.steps_per_epoch)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every ``every_n_steps`` steps, but not at the last batch of an epoch: `on_train_epoch_end` may save."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.last)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save last.ckpt, and copy it to best.ckpt if the online score is the highest so far."""
        score = self.online.score if self.online else None
        better = score is not None and (self.best is None or score > self.best)
        if better:
            self.best = score
        if better or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            trainer.save_checkpoint(self.last)
        if better and trainer.is_global_zero:
            files.copy(self.last, self.folder / files.BEST)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the final state."""
        trainer.save_checkpoint(self.last)


class AtomicCheckpointIO(CheckpointIO):
    """Save and load by `simclr_lightning.checkpoint`: atomically, with a digest, weights only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save atomically; see `simclr_lightning.checkpoint.save`."""
        files.save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load after checking the digest; see `simclr_lightning.checkpoint.load`. Only ``path`` is used."""
        return files.load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a file that Lightning's ModelCheckpoint has replaced; last, previous and best overwrite themselves."""
        for file in (Path(path), Path(f"{path}.sha256")):
            file.unlink(missing_ok=True)


def save_last(trainer: L.Trainer) -> None:
    """Save last.ckpt with the `Checkpoints` of the trainer; without one, do nothing."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoints):
            trainer.save_checkpoint(callback.last)
