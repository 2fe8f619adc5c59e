"""Build the objects of a run from its configuration: data module, SimCLR module, encoder before training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig

from simclr_lightning import checkpoint, encoders
from simclr_lightning.app.config.instantiate import make
from simclr_lightning.app.config.plain import to_plain
from simclr_lightning.app.config.targets import resolve
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.encoder import described, make_module
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.devices import accelerator, device_count
from simclr_lightning.data import ViewsDataModule, array, folder, hf, imagenet, packed
from simclr_lightning.simclr import SimCLR

VIEWS_AT_ONCE = 1 << 28  # bytes: up to here, the float views of a batch are made at once, also with micro-batches


@dataclass(frozen=True)
class Parts:
    """The objects of a run."""

    module: SimCLR
    data: ViewsDataModule
    untrained: encoders.Encoder


def build(cfg: DictConfig) -> Parts:
    """Build the data module and the SimCLR module; the weights depend on ``seed`` alone.

    Args:
        cfg: the resolved configuration of a run, without the hydra node.
    """
    data = make_data(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    module = make_module(cfg.model.encoder)
    encoder = described(cfg.model.encoder, module, size=cfg.views.size)
    if cfg.model.weights is not None:
        encoders.load_weights(encoder, _valid(str(cfg.model.weights)))
    projector = make(cfg.model.projector)(encoder.feature_dim)
    simclr = SimCLR(
        module,
        projector,
        make(cfg.loss),
        make(cfg.optimizer),
        make(cfg.schedule),
        global_batch_size=cfg.data.batch_size,
        micro_batch_size=cfg.micro_batch_size,
    )
    simclr.save_hyperparameters(simclr.hparams, logger=False)  # the loggers have the whole configuration
    if performance.channels_last(cfg, accelerator(cfg)):
        simclr.to(memory_format=torch.channels_last)
    return Parts(simclr, data, copy.deepcopy(encoder))


def check_encoders(cfgs: Iterable[DictConfig]) -> None:
    """Check the encoder of each run with a dry pass, once per architecture; this project's ResNets need none.

    Raises:
        UserError: an encoder cannot be trained; the message describes what it returned.
    """
    checked = set()
    for cfg in cfgs:
        node, size = cfg.model.encoder, int(cfg.views.size)
        key = (repr(to_plain(node)), size)
        if resolve(node._target_) is encoders.resnet or key in checked:
            continue
        checked.add(key)
        images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            encoders.check_encoder(make_module(node), images)
        except ValueError as error:
            named = node.get("name", node._target_)
            raise UserError(f"model.encoder ({named}, {size} x {size} pixels): {error}") from error


def make_data(cfg: DictConfig) -> ViewsDataModule:
    """Build the data module alone."""
    recipe = make(cfg.views)
    # With micro-batches, lazy views are computed twice. For a small batch, that time is worth more than the memory.
    floats = 4 * 2 * 3 * recipe.size**2 * cfg.data.batch_size
    lazy = cfg.get("micro_batch_size") is not None and floats > VIEWS_AT_ONCE
    # The recipe is an argument of the second call, since Hydra would convert a dataclass to a configuration.
    data: ViewsDataModule = make(cfg.data, _partial_=True, seed=cfg.seed, lazy=lazy)(recipe=recipe)
    data.start_method = "forkserver"  # this process has threads and its own signal handlers
    trainer = cfg.get("trainer") or {}
    overfit, limit = trainer.get("overfit_batches"), trainer.get("limit_train_batches")
    data.limit = overfit or (1.0 if limit is None else limit)
    return data


def check_images(cfg: DictConfig) -> None:
    """Check that data.path exists, before a folder is made for the run; public data sets are downloaded to it.

    Too many devices, and a precision that this machine does not have, are refused too.

    Raises:
        ValueError: it does not exist; the message of the data set has the folder that a relative path starts from.
    """
    if "trainer" in cfg:  # an evaluation has none
        performance.precision(cfg, accelerator(cfg))
        device_count(cfg)
    if cfg.data.path is None or Path(cfg.data.path).expanduser().exists():
        return
    if resolve(cfg.data.dataset._target_) in (array, folder, hf, imagenet, packed):
        make_data(cfg).load()


def _valid(weights: str) -> str | Path:
    """Return the newest valid checkpoint if weights are the folder of a run without an export; else weights.

    Raises:
        UserError: weights are a run's checkpoint, and the file is damaged.
    """
    path = Path(weights)
    if path.is_file() and checkpoint.has_digest(path) and not checkpoint.intact(path):
        raise UserError(f"model.weights={weights} is damaged: its SHA-256 is not the one it was saved with")
    found = None if (path / "exported").is_dir() else checkpoint.newest(path)
    return weights if found is None else found[0]
