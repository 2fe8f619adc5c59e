"""What several tests share: small data, a small network, and the command line in this process."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from simclr_lightning.callbacks import AtomicCheckpointIO, Checkpoints, Health, OnlineScore
from simclr_lightning.cli import main
from simclr_lightning.data import Splits, TensorImages, ViewsDataModule
from simclr_lightning.data.images import choose_held_out
from simclr_lightning.ntxent import NTXent
from simclr_lightning.optim import LARS, Schedule
from simclr_lightning.simclr import SimCLR
from simclr_lightning.views import ViewRecipe

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the tests have small tensors and share the cores

import lightning as L
import numpy as np
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from matplotlib.figure import Figure
from torch import nn

SMALL = ViewRecipe(size=8, strength=0.5, blur=0.0)
OVERRIDES = (  # a run of seconds: small network, few images
    "data=array",
    "model.encoder.width=0.125",
    "data.batch_size=16",
    "views.size=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
)


def small_images(count: int, *, classes: int = 3, seed: int = 0, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, side, side, 3) uint8 whose colour tells the class, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    base = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[labels % 3]
    noise = rng.integers(-40, 40, (count, side, side, 3))
    return np.clip(base[:, None, None] + noise, 0, 255).astype(np.uint8), labels.astype(np.int64)


def small_splits(path: Path | None = None, *, count: int = 70, labelled: bool = True) -> Splits:
    images, labels = small_images(count)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(labels) if labelled else None
    train = TensorImages(tensor, y)
    held_out = choose_held_out(count, y, seed=0)
    names = ("red", "green", "blue") if labelled else None
    return Splits(train, TensorImages(tensor[:24], None if y is None else y[:24]), held_out, names, "f" * 32)


class SmallEncoder(nn.Module):
    """A convolution, BatchNorm and a mean: (B, 3, S, S) -> (B, 8)."""

    feature_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.body(x).mean((2, 3))
        return h


def small_module(*, batch: int = 16, seed: int = 3) -> SimCLR:
    torch.manual_seed(seed)
    projector = nn.Linear(8, 6)
    optimizer = partial(LARS, lr=0.5, weight_decay=1e-4)
    return SimCLR(
        SmallEncoder(),
        projector,
        NTXent(0.5),
        optimizer,
        Schedule("constant", warmup_epochs=1),
        global_batch_size=batch,
    )


def small_data(*, batch: int = 16, workers: int = 0, **options: object) -> ViewsDataModule:
    dataset = options.pop("dataset", small_splits)
    return ViewsDataModule(dataset, batch_size=batch, recipe=SMALL, seed=5, num_workers=workers, **options)


def small_trainer(folder: Path, *, stop: Callable[[], int] = lambda: 0, **options: object) -> L.Trainer:
    """A trainer with health, online score and checkpoints; further callbacks under ``extra``."""
    online = OnlineScore(every_n_epochs=0, k=3)
    extra = options.pop("extra", [])
    return L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        log_every_n_steps=1,
        callbacks=[*extra, Health(stop=stop), online, Checkpoints(folder / "checkpoints", online=online)],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start processes come first: the short ones at the end keep both workers busy."""
    items.sort(key=lambda item: "system" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Leave what is imported out of all later garbage collections, which took a quarter of a composition's time."""
    gc.collect()
    gc.freeze()


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of another package during which coverage measures nothing: its tracer doubles the time."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(tracer)

    return call


for _owner, _name in (
    (ConfigLoaderImpl, "load_configuration"),
    (ConfigLoaderImpl, "get_group_options"),
    (Figure, "savefig"),
):  # they call nothing of this package
    setattr(_owner, _name, untraced(getattr(_owner, _name)))

HANDLERS = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tracker, no rank of an outer launcher, and this process's own signal handlers.

    Before too: runs of fixtures for many tests are made before this one, and leave theirs.
    """
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for signum, handler in HANDLERS.items():
        signal.signal(signum, handler)
    yield
    for signum, handler in HANDLERS.items():
        signal.signal(signum, handler)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """An array file of 64 training and 24 test images in 3 classes."""
    images, labels = small_images(88)
    path = tmp_path / "images.npz"
    np.savez(path, train_images=images[:64], train_labels=labels[:64], test_images=images[64:], test_labels=labels[64:])
    return path


@pytest.fixture
def simclr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The program, run in this process in a folder of its own: simclr("train", "key=value") -> exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: main([str(word) for word in words])
