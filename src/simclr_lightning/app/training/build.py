"""Build the objects of a run from its configuration: data module, SimCLR module, encoder before training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig
from torch import nn

from simclr_lightning import checkpoint, encoders
from simclr_lightning.app.config.instantiate import make
from simclr_lightning.app.config.targets import resolve
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.devices import accelerator, device_count
from simclr_lightning.data import ViewsDataModule, array, folder, imagenet, packed
from simclr_lightning.simclr import SimCLR

VIEWS_AT_ONCE = 1 << 28  # bytes: up to here, the float views of a batch are made at once, also with micro-batches


@dataclass(frozen=True)
class Parts:
    """The objects of a run."""

    module: SimCLR
    data: ViewsDataModule
    untrained: nn.Module


def build(cfg: DictConfig) -> Parts:
    """Build the data module and the SimCLR module; the weights depend on ``seed`` alone.

    Args:
        cfg: the resolved configuration of a run, without the hydra node.
    """
    data = make_data(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    encoder = make(cfg.model.encoder)
    if cfg.model.weights is not None:
        encoders.load_weights(encoder, _valid(str(cfg.model.weights)))
    projector = make(cfg.model.projector)(encoder.feature_dim)
    module = SimCLR(
        encoder,
        projector,
        make(cfg.loss),
        make(cfg.optimizer),
        make(cfg.schedule),
        global_batch_size=cfg.data.batch_size,
        micro_batch_size=cfg.micro_batch_size,
    )
    if performance.channels_last(cfg, accelerator(cfg)):
        module.to(memory_format=torch.channels_last)
    return Parts(module, data, copy.deepcopy(encoder))


def make_data(cfg: DictConfig) -> ViewsDataModule:
    """Build the data module alone."""
    recipe = make(cfg.views)
    # Made twice by micro-batches, the views of a small batch would cost more time than they save memory.
    floats = 4 * 2 * 3 * recipe.size**2 * cfg.data.batch_size
    lazy = cfg.get("micro_batch_size") is not None and floats > VIEWS_AT_ONCE
    # Called with the recipe and not made with it: Hydra would make a configuration of a dataclass.
    data: ViewsDataModule = make(cfg.data, _partial_=True, seed=cfg.seed, lazy=lazy)(recipe=recipe)
    trainer = cfg.get("trainer") or {}
    overfit, limit = trainer.get("overfit_batches"), trainer.get("limit_train_batches")
    data.limit = overfit or (1.0 if limit is None else limit)
    return data


def check_images(cfg: DictConfig) -> None:
    """Refuse a path where nothing is, before a folder is made for the run; public data sets are downloaded to it.

    Too many devices, and a precision that this machine does not have, are refused too.

    Raises:
        ValueError: by the data set; it names the folder in which a relative path was looked for.
    """
    if "trainer" in cfg:  # an evaluation has none
        performance.precision(cfg, accelerator(cfg))
        device_count(cfg)
    if cfg.data.path is None or Path(cfg.data.path).expanduser().exists():
        return
    if resolve(cfg.data.dataset._target_) in (array, folder, imagenet, packed):
        make_data(cfg).load()


def _valid(weights: str) -> str | Path:
    """Return the newest valid checkpoint if weights are the folder of a run without an export; else weights.

    Raises:
        UserError: a run's checkpoint is named that is not what was saved.
    """
    path = Path(weights)
    if path.is_file() and checkpoint.has_digest(path) and not checkpoint.intact(path):
        raise UserError(f"model.weights={weights} is damaged: its SHA-256 is not the one it was saved with")
    found = None if (path / "exported").is_dir() else checkpoint.newest(path)
    return weights if found is None else found[0]
