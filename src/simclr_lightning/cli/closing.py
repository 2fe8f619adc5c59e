"""The end of a run on the terminal, and what metrics.csv says of it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from simclr_lightning.callbacks import selected
from simclr_lightning.cli.tracker import sync_command

METRICS: Final = "metrics.csv"
_WITHOUT_LABELS: Final = {  # docs/label_free.md
    "loss (NT-Xent)": ("held_out_loss", "{:.3f}"),
    "the other view is the nearest": ("contrastive_accuracy", "{:.1%}"),
    "neighbours that the views share": ("neighbour_agreement", "{:.1%}"),
    "effective rank of h": ("effective_rank", "{:.1f}"),
}


def closing_block(folder: Path, summary: dict[str, Any], console: Console) -> None:
    """The table of scores and the commands to go on with."""
    unlabelled = summary.get("knn_top1") is None
    console.print(_unlabelled(folder) if unlabelled else _labelled(summary))
    run = shown(folder)
    commands = {
        "resume": f"python train.py ckpt_path='{run}' trainer.max_epochs=N",
        "evaluate": f"simclr evaluate '{run}'" + " data=folder data.path=LABELLED" * unlabelled,
        "embed": f"simclr embed '{run}' IMAGES OUT.npz",
        "sync": sync_command(folder),
    }
    console.print(f"everything is in {run}", soft_wrap=True, markup=False)
    for name, command in commands.items():
        if command:
            console.print(f"  {name:9} {command}", soft_wrap=True, markup=False)


def _labelled(summary: dict[str, Any]) -> Table:
    """The scores on test."""
    table = Table(title="top-1 on test", title_justify="left")
    table.add_column("what")
    table.add_column("score", justify="right")
    rows = {
        "kNN on raw pixels": "knn_top1_pixels",
        "kNN on the untrained encoder": "knn_top1_untrained",
        "kNN on the trained encoder": "knn_top1",
        "linear probe on the trained encoder": "linear_top1",
    }
    for name, key in rows.items():
        value = summary.get(key)
        table.add_row(name, "-" if value is None else f"{value:.1%}")
    return table


def _unlabelled(folder: Path) -> Table:
    """What two views of held-out images say without labels, after the first epoch that was scored and the last."""
    table = Table(title="no labels: two views of each held-out image", title_justify="left")
    table.add_column("what")
    for name in ("first", "last"):
        table.add_column(name, justify="right")
    scored = [scores for row in _rows(folder / METRICS) if (scores := _online(row))]
    ends: tuple[dict[str, float], dict[str, float]] = (scored[0], scored[-1]) if scored else ({}, {})
    for name, (key, form) in _WITHOUT_LABELS.items():
        cells = (form.format(scores[key]) if key in scores else "-" for scores in ends)
        table.add_row(name, *cells)
    return table


def shown(folder: Path) -> str:
    """The folder as a user here would type it."""
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)


def last_metrics(path: Path, select: str) -> dict[str, float | None]:
    """The last epoch's figures from metrics.csv, which also holds what earlier processes of the run measured.

    Every ``online/NAME`` becomes ``online_NAME``. ``held_out_score`` is what sweepers maximise: the score that
    ``select`` names, on the held-out part of train, with the sign under which higher is better.
    """
    names = {
        "loss": "train/loss",
        "contrastive_accuracy": "train/contrastive_accuracy",
        "contrastive_entropy": "train/contrastive_entropy",
    }
    found: dict[str, float | None] = dict.fromkeys(names)
    online: dict[str, float] = {}
    for row in _rows(path):
        found.update({key: row[name] for key, name in names.items() if name in row})
        online |= _online(row)
    return {**found, "held_out_score": selected(online, select), **{f"online_{k}": v for k, v in online.items()}}


def _rows(path: Path) -> Iterator[dict[str, float]]:
    """What each row of metrics.csv holds, by its columns; nothing where there is no file."""
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield {name: float(value) for name, value in row.items() if name and value}


def _online(row: Mapping[str, float]) -> dict[str, float]:
    """The scores of a row, without the ``online/`` before their names."""
    return {name.removeprefix("online/"): value for name, value in row.items() if name.startswith("online/")}
