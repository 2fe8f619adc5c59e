"""Rank correlation of each score without labels with the linear probe's top-1 on test.

    python benchmarks/label_free.py                        # the photographs: about two and a half minutes on two cores
    python benchmarks/label_free.py --npz cifar10.npz      # and an array file: train_images, train_labels, test_*
    python benchmarks/label_free.py --quick                # a smoke run: runs of two steps

Two sets of encoders answer two questions. Checkpoints of one run: which is the best one? Runs of equal length with
other temperatures, learning rates, views and projectors: which setting is the best? Every encoder gets the scores of
`select=` on held-out images, as its run measures them with its views and temperature, and the top-1 on test of
logistic regression on h, with l2 picked on held-out labels. The table has Spearman's rank correlation of the two. Its
sign follows each score's better direction: at 1 the score ranks as the probe does, at 0 it carries no information,
below 0 it misleads. With n encoders a correlation of 0 varies by about 1 / sqrt(n - 1).
"""

from __future__ import annotations

import copy
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
from rich.progress import Progress
from scipy.stats import spearmanr

from _harness import arguments, markdown, parse, quiet_lightning, write
from simclr_lightning import NTXent, Projector, Schedule, SimCLR, ViewRecipe, ViewsDataModule, resnet
from simclr_lightning.callbacks import SELECTABLE, bank_indices, label_free, probe_scores
from simclr_lightning.data import array, photos
from simclr_lightning.evaluation import accuracy, choose_l2, extract, knn_predict

BATCH, BANK, QUERIES = 64, 2000, 1000
L2S = [10.0**power for power in range(-6, 2)]
BASE = ViewRecipe(size=32, area=(0.2, 1.0), strength=0.25, grey=0.1, blur=0.0)
PARTS = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4)  # places of the long run's checkpoints, in lengths of a short run


@dataclass(frozen=True)
class Setting:
    """The settings of a run."""

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
    """One encoder: its data set, setting and step, the linear probe's top-1 on test, and the scores."""

    data: str
    setting: str
    step: int
    linear: float
    scores: dict[str, float]


class Evaluate(L.Callback):
    """Evaluates the encoder after the given steps of a run."""

    def __init__(self, data: str, setting: str, steps: Sequence[int], progress: Progress, task: Any) -> None:
        self.data, self.setting, self.steps = data, setting, set(steps)
        self.progress, self.task = progress, task
        self.rows: list[Row] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        self.progress.advance(self.task)
        if trainer.global_step in self.steps:
            scores, linear = evaluate(module, trainer.datamodule)
            self.rows.append(Row(self.data, self.setting, trainer.global_step, linear, scores))


def evaluate(module: Any, data: ViewsDataModule) -> tuple[dict[str, float], float]:
    """Return the scores on the held-out part, and the linear probe's top-1 on test."""
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
        warnings.simplefilter("ignore", RuntimeWarning)  # the weakest l2 needs more iterations than its result is worth
        best = choose_l2(h_bank, y_bank, h_held, y_held, l2s=L2S, classes=len(splits.class_names), max_iter=200)
    return {name: scores[name] for name in SELECTABLE}, accuracy(best, h_test, y_test)


def spread(indices: torch.Tensor, most: int) -> torch.Tensor:
    """Return at most ``most`` of the indices, drawn with a fixed seed because files may be sorted by class."""
    chosen = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:most]
    return indices[chosen.sort().values]


def train(name: str, splits: Any, setting: Setting, steps: Sequence[int], progress: Progress, task: Any) -> list[Row]:
    """Train once and return a row for each of the given steps."""
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
    evaluation = Evaluate(name, setting.name, steps, progress, task)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=max(steps), logger=False, callbacks=[evaluation], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=ViewsDataModule(lambda path: splits, batch_size=BATCH, recipe=setting.views))
    return evaluation.rows


def correlations(rows: Sequence[Row]) -> dict[str, float | None]:
    """Return Spearman's correlation of each score with the probe, None where a score does not vary."""
    linear = [row.linear for row in rows]
    found: dict[str, float | None] = {}
    for name, sign in SELECTABLE.items():
        values = [sign * row.scores[name] for row in rows]
        varies = len(set(values)) > 1 and len(set(linear)) > 1
        found[name] = round(float(spearmanr(values, linear).statistic), 3) if varies else None
    return found


def train_all(sets: dict[str, Any], steps: int) -> list[Row]:
    """Train the long run and a short one of each setting on every data set."""
    marks = sorted({max(1, math.ceil(part * steps)) for part in PARTS})
    rows: list[Row] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("training and evaluating", total=len(sets) * (max(marks) + len(SETTINGS) * steps))
        for name, splits in sets.items():
            rows += train(name, splits, Setting(), marks, progress, task)
            for setting in SETTINGS:
                rows += train(name, splits, copy.deepcopy(setting), [steps], progress, task)
    return rows


def columns_of(rows: Sequence[Row], steps: int) -> dict[str, dict[str, float | None]]:
    """Return the correlations over three sets of encoders."""
    run = [row for row in rows if row.setting == "base"]
    ends = [row for row in rows if row.step == steps]
    return {
        f"checkpoints of a run (n {len(run)})": correlations(run),
        f"settings (n {len(ends)})": correlations(ends),
        f"all (n {len(rows)})": correlations(rows),
    }


def show(name: str, rows: Sequence[Row], columns: dict[str, dict[str, float | None]]) -> None:
    print(f"{name}: Spearman's correlation with the linear probe on test")
    lines = []
    for score in SELECTABLE:
        cells = (found[score] for found in columns.values())
        lines.append([score, *("-" if cell is None else f"{cell:+.2f}" for cell in cells)])
    print(markdown(["score", *columns], lines))
    ranked = sorted(rows, key=lambda row: -row.linear)
    print("  ".join(f"{row.setting} at {row.step}: {row.linear:.1%}" for row in ranked))


def main() -> None:
    parser = arguments(__file__, __doc__)
    parser.add_argument("--npz", type=Path, help="also train on this array file, such as CIFAR-10")
    parser.add_argument("--steps", type=int, default=84, help="of a run; the one with checkpoints is four times longer")
    options = parse(parser)
    steps = 2 if options.quick else options.steps
    started = time.time()
    sets = {"photos": photos(None)} | ({options.npz.stem: array(options.npz)} if options.npz else {})
    with quiet_lightning():
        rows = train_all(sets, steps)
    result: dict[str, Any] = {}
    for name in sets:
        own = [row for row in rows if row.data == name]
        result[name] = columns_of(own, steps)
        show(name, own, result[name])
    about = {"seconds": round(time.time() - started), "steps": steps, "correlations": result}
    write(options, "torch", "lightning", "scipy", **about, encoders=[asdict(row) for row in rows])


if __name__ == "__main__":
    main()
