"""Finish a trained run: score on test, draw, export, write summary.json and print the closing block."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from simclr_lightning import checkpoint as checkpoints, export, pictures
from simclr_lightning.app.runs.run import reached_limits
from simclr_lightning.app.training.devices import world_size
from simclr_lightning.app.training.messages import closing_block
from simclr_lightning.callbacks import RunProgress
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.data.datamodule import centred
from simclr_lightning.data.images import ImageSet
from simclr_lightning.encoders import Encoder
from simclr_lightning.evaluation import extract, nearest, pixels
from simclr_lightning.evaluation.protocols import frozen
from simclr_lightning.evaluation.protocols.features import Extractor, features, labelled_parts
from simclr_lightning.loggers.make import close_loggers
from simclr_lightning.run_folder import last_metrics, write_summary
from simclr_lightning.simclr import SimCLR
from simclr_lightning.stopping import STOP

K = 20  # neighbours that vote (the contract's kNN)
PIXEL_SIDE = 32  # raw pixels are compared at this side at most, so that a large set fits in memory
PICTURE_QUERIES, PICTURE_NEIGHBOURS, MAP_POINTS = 8, 8, 2000


@dataclass(frozen=True)
class Scores:
    """Top-1 on test as fractions; None where there are no labels to score with."""

    knn_top1: float | None = None
    knn_top1_untrained: float | None = None
    knn_top1_pixels: float | None = None
    linear_top1: float | None = None


def blank_summary(cfg: DictConfig) -> dict[str, Any]:
    """Return every key of summary.json, with the values that the configuration gives."""
    return {
        "status": "failed",
        "steps": 0,
        "epochs": 0,
        "images_seen": 0,
        "images_per_second": None,
        "loss": None,
        "contrastive_accuracy": None,
        "contrastive_entropy": None,
        "knn_top1": None,
        "knn_top1_untrained": None,
        "knn_top1_pixels": None,
        "linear_top1": None,
        "held_out_score": None,
        "select": cfg.select,
        "temperature": cfg.loss.get("temperature"),
        "global_batch_size": cfg.data.batch_size,
        "devices": world_size(cfg),
        "seed": cfg.seed,
    }


def finish(
    folder: Path,
    cfg: DictConfig,
    module: SimCLR,
    data: ViewsDataModule,
    untrained: nn.Module,
    trainer: L.Trainer,
    progress: RunProgress,
    console: Console,
    *,
    started: float,
) -> None:
    """Score last.ckpt, draw, export, write summary.json and print the closing block.

    Raises:
        Stopped: a signal has come, and summary.json does not have the status "finished" yet.
    """
    found = checkpoints.newest(folder)
    assert found is not None  # training ends with a save
    saved = checkpoints.load(found[0])
    module.load_state_dict(saved["state_dict"])
    device = trainer.strategy.root_device
    encoder = cast(Encoder, module.encoder.to(device).eval())
    STOP.check()
    with console.status("scoring on test and drawing ..."):
        scores, h_test = _scores(encoder, untrained.to(device), data, device)
        _draw(folder, encoder, data, device, h_test)
    step, seen = int(saved["global_step"]), int(saved[type(data).__qualname__]["samples_seen"])
    epochs = seen / (data.steps_per_epoch * data.batch_size)
    summary = {
        **blank_summary(cfg),
        "status": "finished",
        "steps": step,
        "epochs": int(epochs) if epochs == int(epochs) else epochs,
        "images_seen": seen,
        "images_per_second": round(progress.images_per_second, 2) or None,
        **last_metrics(folder, cfg.select),
        **scores.__dict__,
        "devices": trainer.world_size,
        "seconds": round(time.time() - started, 1),
    }
    STOP.check()
    export.export_encoder(encoder.cpu(), folder / "exported", card=_card(cfg, data, summary), size=data.recipe.size)
    STOP.check()
    STOP.last = lambda signum: None  # from here on the run is finished, whatever the loggers do
    write_summary(folder, summary)
    for logger in trainer.loggers:
        logger.log_metrics({f"final/{k}": v for k, v in scores.__dict__.items() if v is not None}, step=step)
    close_loggers(trainer, folder, summary)
    limits = reached_limits(cfg, epochs=summary["epochs"], steps=step)
    closing_block(folder, cfg, summary, console, limits=limits)


def _scores(
    encoder: nn.Module, untrained: nn.Module, data: ViewsDataModule, device: torch.device
) -> tuple[Scores, Tensor | None]:
    """Return the scores, and h of the test images if all of them have labels.

    kNN: k 20, cosine, majority vote; bank = labelled train without its held-out part. Probe: logistic regression on h
    by L-BFGS, l2 picked on the held-out part (paper, appendix B.8). Test is touched once.
    """
    splits = data.load()
    parts = labelled_parts(splits)
    if parts is None or splits.test is None or not len(parts.test):
        return Scores(), None
    trained, bare = (features(one, data, Extractor([device])) for one in (encoder, untrained))
    images = ((splits.train, parts.bank), (splits.test, parts.test))
    bank, test = (_pixels(part, rows, data) for part, rows in images)
    knn = {"k": min(K, len(parts.bank)), "ks": [], "temperature": 1.0, "weighting": "plain"}
    scores = Scores(
        knn_top1=frozen.knn_scores(trained, knn)[0].mean,
        knn_top1_untrained=frozen.knn_scores(bare, knn)[0].mean,
        knn_top1_pixels=frozen.knn_scores(replace(trained, bank_h=bank, test_h=test), knn)[0].mean,
        linear_top1=frozen.lbfgs_score(trained).mean if len(parts.held_out) else None,
    )
    return scores, trained.test_h if len(parts.test) == len(splits.test) else None


def _pixels(images: ImageSet, rows: Tensor, data: ViewsDataModule) -> Tensor:
    side = min(data.recipe.size, PIXEL_SIDE)
    parts = []
    for part in rows.split(512):
        STOP.check()
        parts.append((centred(images, part, size=side) * 255).round().to(torch.uint8))
    return pixels(torch.cat(parts))


def _draw(folder: Path, encoder: nn.Module, data: ViewsDataModule, device: torch.device, h_test: Tensor | None) -> None:
    splits = data.load()
    shown_set = splits.test if splits.test is not None else splits.train
    spread = _spread(splits.training_images, PICTURE_QUERIES)
    pictures.view_pairs(*data.view_pairs(spread), folder / "views.png", count=len(spread))

    rows = _spread(len(shown_set), MAP_POINTS)
    h = extract(encoder, data.eval_batches(shown_set, rows), device=device) if h_test is None else h_test[rows]
    labels = None if shown_set.labels is None else shown_set.labels[rows]
    pictures.embedding_map(h, labels, splits.class_names, folder / "embedding.png")

    asked = _spread(len(rows), PICTURE_QUERIES)
    k = min(PICTURE_NEIGHBOURS + 1, len(rows))
    _, found = nearest(h[asked], h, k)
    # The nearest of an image is itself; a duplicate may come first, so it is taken out by its number.
    found = torch.stack([row[row != own][: k - 1] for row, own in zip(found, asked, strict=True)])
    if not found.numel():
        return
    queries = centred(shown_set, rows[asked], size=data.recipe.size)
    images = torch.stack([centred(shown_set, rows[row], size=data.recipe.size) for row in found])
    same = None if labels is None else labels[found] == labels[asked][:, None]
    pictures.neighbours(queries, images, folder / "neighbours.png", correct=same)


def _spread(count: int, wanted: int) -> Tensor:
    """Return at most ``wanted`` indices at equal distances over ``count``."""
    wanted = min(count, wanted)
    return torch.arange(wanted) * count // max(wanted, 1)


def _card(cfg: DictConfig, data: ViewsDataModule, summary: dict[str, Any]) -> dict[str, Any]:
    splits = data.load()
    return {
        "data": f"{splits.training_images} images, {cfg.data.dataset._target_.rsplit('.', 1)[-1]}",
        "views": dict(cfg.views),
        "recipe": {
            "batch size": cfg.data.batch_size,
            "temperature": cfg.loss.get("temperature"),
            "optimizer": dict(cfg.optimizer),
            "schedule": dict(cfg.schedule),
            "steps": summary["steps"],
            "seed": cfg.seed,
        },
        "scores": {key: summary[key] for key in Scores().__dict__},
    }
