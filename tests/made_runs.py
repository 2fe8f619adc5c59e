"""Folders as runs leave them, with numbers that a test chooses."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import yaml

SUMMARY = {
    "status": "finished", "steps": 40, "epochs": 5, "images_seen": 640, "images_per_second": 100.5, "loss": 2.5,
    "contrastive_accuracy": 0.5, "contrastive_entropy": 2.25, "knn_top1": 0.6, "knn_top1_untrained": 0.4,
    "knn_top1_pixels": 0.3, "linear_top1": 0.7, "held_out_score": 0.65, "temperature": 0.5, "global_batch_size": 64,
    "devices": 1, "seed": 0, "seconds": 12.5,
}  # fmt: skip


def make_run(folder: Path, *words: str, similarity: bool = True, summary: Any = None, **fields: Any) -> Path:
    """A run's folder; `fields` replace those of the summary, and `summary` the whole of it (a text as it is)."""
    config: dict[str, Any] = {
        "seed": 0,
        "loss": {"temperature": 0.5},
        "data": {"batch_size": 64},
        "optimizer": {"lr": 0.3},
        "schedule": {"rule": "linear"},
        "trainer": {"max_epochs": 5},
    }
    for word in words:
        *nodes, last = word.partition("=")[0].split(".")
        node = config
        for name in nodes:
            node = node.setdefault(name, {})
        node[last] = yaml.safe_load(word.partition("=")[2])
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(words)))
    facts = {
        **SUMMARY,
        "temperature": config["loss"]["temperature"],
        "global_batch_size": config["data"]["batch_size"],
        "seed": config["seed"],
        **fields,
    }
    if summary is None:
        (folder / "summary.json").write_text(json.dumps(facts))
    elif summary != "":
        (folder / "summary.json").write_text(summary)
    _metrics(folder, facts, config)
    if similarity:
        _similarity(folder, config["loss"]["temperature"])
    return folder


def _metrics(folder: Path, facts: dict[str, Any], config: dict[str, Any]) -> None:
    tau, seed = config["loss"]["temperature"], config["seed"]
    names = ["step", "epoch", "train/loss", "train/contrastive_accuracy", "train/contrastive_entropy", "lr"]
    names += ["online/knn_top1", "train/loss_step"]
    names += ["train/hardest_1", "train/hardest_10", "train/effective_negatives", "train/same_class_hardest_10"]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for epoch in range(5):
            at = {"step": 8 * epoch + 8, "epoch": epoch}
            hard = 0.01 + 0.5 * math.exp(-3 * tau) + 0.001 * seed
            writer.writerow({**at, "train/loss_step": 4 - 0.3 * epoch, "lr": 0.1 / (epoch + 1)})
            writer.writerow(
                {**at, "train/hardest_1": hard, "train/hardest_10": min(1.0, 2 * hard + 0.08),
                 "train/effective_negatives": 20 + 80 * tau, "train/same_class_hardest_10": 0.3}
            )  # fmt: skip
            curve = 1 - math.exp(-0.5 * (epoch + 1))
            writer.writerow(
                {**at, "train/loss": (facts["loss"] or 3) + 2 - 2 * curve, "train/contrastive_entropy": 3 - tau,
                 "train/contrastive_accuracy": 0.8 * curve}
            )  # fmt: skip
            writer.writerow({**at, "online/knn_top1": 0.3 + 0.4 * curve})


def _similarity(folder: Path, tau: float) -> None:
    rows = ["step,low,high,positives,negatives"]
    for step in (20, 40):
        for place in range(16):
            low = place / 8 - 1
            near, far = (math.exp(-(((low - at) / 0.25) ** 2)) for at in (0.8, 0.4 * tau))
            rows.append(f"{step},{low},{low + 0.125},{round(100 * near)},{round(900 * far)}")
    (folder / "similarity.csv").write_text("\n".join(rows) + "\n")
