"""How well each score without labels ranks encoders: its rank correlation with the linear probe on test.

    python benchmarks/label_free.py                        # the photographs: about two and a half minutes on two cores
    python benchmarks/label_free.py --npz cifar10.npz      # and an array file: train_images, train_labels, test_*
    python benchmarks/label_free.py --steps 10             # a smaller run

Two questions, each a set of encoders: the checkpoints of one run (which is the best to keep?), and runs of equal length
with other temperatures, learning rates, views and projectors (which setting is best?). Every encoder is given the
scores of `select=` on held-out images as its own run measures them, with its own views and temperature, and the top-1
on test of logistic regression on h, with l2 picked on held-out labels. Printed: Spearman's rank correlation of the
two, with the sign under which a score is said to be better; 1 ranks as the probe does, 0 says nothing, below 0
misleads. With n encoders a correlation of 0 varies by about 1 / sqrt(n - 1).
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import spearmanr

from machine import machine
from simclr_lightning import NTXent, Projector, Schedule, SimCLR, ViewRecipe, ViewsDataModule, resnet
from simclr_lightning.callbacks import SELECTABLE, bank_indices, label_free, probe_scores
from simclr_lightning.data import array, photos
from simclr_lightning.evaluation import accuracy, choose_l2, extract, knn_predict

BATCH, BANK, QUERIES = 64, 2000, 1000
L2S = [10.0**power for power in range(-6, 2)]
BASE = ViewRecipe(size=32, area=(0.2, 1.0), strength=0.25, grey=0.1, blur=0.0)
PARTS = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4)  # of the length of a run, where the checkpoints of the long one lie


@dataclass(frozen=True)
class Setting:
    """What a run is trained with."""

    name: str = "base"
    temperature: float = 0.5
    lr: float = 1e-3
    views: ViewRecipe = BASE
    projector: dict[str, Any] = field(default_factory=lambda: {"hidden_dim": 512, "layers": 3})


SETTINGS = (
    Setting("temperature 0.05", temperature=0.05),
    Setting("temperature 2", temperature=2.0),
    Setting("rate / 10", lr=1e-4),
    Setting("rate x 10", lr=1e-2),
    Setting("no colour change", views=replace(BASE, jitter=0.0, grey=0.0)),
    Setting("strong colour change", views=replace(BASE, strength=1.0, grey=0.2)),
    Setting("large crops alone", views=replace(BASE, area=(0.8, 1.0))),
    Setting("no views", views=replace(BASE, crop="centre", flip=0.0, jitter=0.0, grey=0.0)),
    Setting("linear projector", projector={"layers": 1}),
)


@dataclass(frozen=True)
class Row:
    """One encoder: from which data and run, its scores, and what the probe says of it."""

    data: str
    setting: str
    step: int
    linear: float
    scores: dict[str, float]


class Judge(L.Callback):
    """Scores the encoder after certain steps of a run."""

    def __init__(self, data: str, setting: str, steps: Sequence[int], progress: Progress, task: Any) -> None:
        self.data, self.setting, self.steps = data, setting, set(steps)
        self.progress, self.task = progress, task
        self.rows: list[Row] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        self.progress.advance(self.task)
        if trainer.global_step in self.steps:
            scores, linear = judge(module, trainer.datamodule)
            self.rows.append(Row(self.data, self.setting, trainer.global_step, linear, scores))


def judge(module: Any, data: ViewsDataModule) -> tuple[dict[str, float], float]:
    """The scores on the held-out part, and the linear probe's top-1 on test."""
    splits = data.load()
    train, test = splits.train, splits.test
    bank = spread(bank_indices(train.labels, splits.held_out), BANK)
    held, asked = spread(splits.held_out, BANK // 4), spread(torch.arange(len(test)), QUERIES)
    h = extract(module.encoder, data.eval_batches(train, torch.cat((bank, held))))
    h_bank, h_held = h[: len(bank)], h[len(bank) :]
    h_test = extract(module.encoder, data.eval_batches(test, asked))
    y_bank, y_held, y_test = train.labels[bank], train.labels[held], test.labels[asked]
    scores = {"knn_top1": (knn_predict(h_bank, y_bank, h_held, k=20) == y_held).double().mean().item()}
    scores |= probe_scores(h_bank, y_bank, h_held, y_held)
    scores |= label_free(module, data, most=512, k=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the weakest l2 needs more iterations than it is worth
        best = choose_l2(h_bank, y_bank, h_held, y_held, l2s=L2S, classes=len(splits.class_names), max_iter=200)
    return {name: scores[name] for name in SELECTABLE}, accuracy(best, h_test, y_test)


def spread(indices: torch.Tensor, most: int) -> torch.Tensor:
    """At most so many of the indices, drawn with a fixed seed (classes may lie in order)."""
    chosen = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:most]
    return indices[chosen.sort().values]


def train(name: str, splits: Any, setting: Setting, steps: Sequence[int], progress: Progress, task: Any) -> list[Row]:
    """One run, judged after the steps given."""
    L.seed_everything(0, verbose=False)
    encoder = resnet(10, 0.25, "cifar")
    module = SimCLR(
        encoder,
        Projector(encoder.feature_dim, **setting.projector),
        NTXent(setting.temperature),
        partial(torch.optim.AdamW, lr=setting.lr, weight_decay=1e-4),
        Schedule("constant", warmup_epochs=0.2),
        global_batch_size=BATCH,
    )
    judging = Judge(name, setting.name, steps, progress, task)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=max(steps), logger=False, callbacks=[judging], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=ViewsDataModule(lambda path: splits, batch_size=BATCH, recipe=setting.views))
    return judging.rows


def correlations(rows: Sequence[Row]) -> dict[str, float | None]:
    """Spearman's correlation of each score, its better end up, with the probe; None where a score does not vary."""
    linear = [row.linear for row in rows]
    found: dict[str, float | None] = {}
    for name, sign in SELECTABLE.items():
        values = [sign * row.scores[name] for row in rows]
        varies = len(set(values)) > 1 and len(set(linear)) > 1
        found[name] = round(float(spearmanr(values, linear).statistic), 3) if varies else None
    return found


def show(title: str, rows: Sequence[Row], columns: dict[str, dict[str, float | None]], console: Console) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for name in columns:
        table.add_column(name, justify="right")
    for score in SELECTABLE:
        cells = (found[score] for found in columns.values())
        table.add_row(score, *("-" if cell is None else f"{cell:+.2f}" for cell in cells))
    console.print(table)
    ranked = sorted(rows, key=lambda row: -row.linear)
    console.print("  ".join(f"{row.setting} at {row.step}: {row.linear:.1%}" for row in ranked), soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rank correlation of label-free scores with the linear probe.")
    parser.add_argument("--npz", type=Path, help="an array file to train on beside the photographs, such as CIFAR-10")
    parser.add_argument("--steps", type=int, default=84, help="of a run; the one with checkpoints is four times longer")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # Lightning's, of loaders and devices
    for logger in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    started, console = time.time(), Console()
    sets = {"photos": photos(None)} | ({options.npz.stem: array(options.npz)} if options.npz else {})
    marks = sorted({max(1, math.ceil(part * options.steps)) for part in PARTS})
    rows: list[Row] = []
    with Progress(console=console, transient=True) as progress:
        total = len(sets) * (max(marks) + len(SETTINGS) * options.steps)
        task = progress.add_task("training and judging", total=total)
        for name, splits in sets.items():
            rows += train(name, splits, Setting(), marks, progress, task)
            for setting in SETTINGS:
                rows += train(name, splits, copy.deepcopy(setting), [options.steps], progress, task)
    result: dict[str, Any] = {}
    for name in sets:
        own = [row for row in rows if row.data == name]
        run = [row for row in own if row.setting == "base"]
        ends = [row for row in own if row.step == options.steps]
        columns = {
            f"checkpoints of a run (n {len(run)})": correlations(run),
            f"settings (n {len(ends)})": correlations(ends),
            f"all (n {len(own)})": correlations(own),
        }
        result[name] = columns
        show(f"{name}: Spearman's correlation with the linear probe on test", own, columns, console)
    about = {
        **machine("torch", "lightning", "scipy"),
        "threads": torch.get_num_threads(),
        "seconds": round(time.time() - started),
        "steps": options.steps,
    }
    options.output.write_text(
        json.dumps(about | {"correlations": result, "encoders": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    console.print(f"{about['seconds']} s; written to {options.output}")


if __name__ == "__main__":
    main()
