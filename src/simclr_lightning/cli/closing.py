"""The end of a run on the terminal, and what metrics.csv says of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from simclr_lightning.callbacks import selected
from simclr_lightning.cli.tracker import sync_command

METRICS: Final = "metrics.csv"
_WITHOUT_LABELS: Final = {  # docs/label_free.md
    "loss (NT-Xent)": ("online_held_out_loss", "{:.3f}"),
    "the other view is the nearest": ("online_contrastive_accuracy", "{:.1%}"),
    "neighbours that the views share": ("online_neighbour_agreement", "{:.1%}"),
    "effective rank of h": ("online_effective_rank", "{:.1f}"),
}


def closing_block(folder: Path, summary: dict[str, Any], console: Console) -> None:
    """The table of scores and the commands to go on with."""
    console.print(_unlabelled(folder) if summary.get("knn_top1") is None else _labelled(summary))
    run = shown(folder)
    commands = {
        "resume": f"python train.py ckpt_path='{run}' trainer.max_epochs=N",
        "evaluate": f"simclr evaluate '{run}'",
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
    first, last = _first_metrics(folder / METRICS), last_metrics(folder / METRICS, "auto")
    for name, (key, form) in _WITHOUT_LABELS.items():
        cells = (form.format(value) if value is not None else "-" for value in (first.get(key), last.get(key)))
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
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.update({key: float(row[name]) for key, name in names.items() if row.get(name)})
                online |= {k[7:]: float(v) for k, v in row.items() if k and k.startswith("online/") and v}
    return {**found, "held_out_score": selected(online, select), **{f"online_{k}": v for k, v in online.items()}}


def _first_metrics(path: Path) -> dict[str, float]:
    """Every ``online/NAME`` of metrics.csv as it was first, as ``online_NAME``."""
    found: dict[str, float] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                scored = {f"online_{k[7:]}": float(v) for k, v in row.items() if k and k.startswith("online/") and v}
                found = scored | found
    return found
