"""Print the result of an evaluation as a table, and write it as evaluation.json and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from simclr_lightning import files, pictures
from simclr_lightning.evaluation.protocols.evaluation import Found
from simclr_lightning.evaluation.protocols.published import published
from simclr_lightning.run_folder import EVALUATION

_CONFUSION_OF: Final = ("linear", "linear_sgd", "finetune", "knn", "knn_weighted")  # drawn: the first that has a score


def show_results(found: Found, console: Console) -> None:
    """Print the scores as a table, with columns for an untrained encoder and published scores if there are any."""
    table = Table(title="top-1 on test", title_justify="left")
    figures = {score.key: published(found.data, found.spec, score.key) for score in found.scores}
    table.add_column("protocol")
    columns = ["score", "95 %", *(["untrained"] if found.untrained else [])]
    columns += ["published", "difference"] if any(figures.values()) else []
    for name in (*columns, "seconds"):
        table.add_column(name, justify="right")
    for score in found.scores:
        low, high = score.interval
        cells = [score.title, f"{score.mean:.1%}", f"{low:.1%} to {high:.1%}"]
        if found.untrained:
            cells.append(f"{found.untrained[score.key].mean:.1%}")
        if any(figures.values()):
            figure = figures[score.key]
            cells += [f"{figure.top1:.1%}", f"{100 * (score.mean - figure.top1):+.1f}"] if figure else ["", ""]
        table.add_row(*cells, f"{score.seconds:.1f}")
    console.print(table)
    for source in sorted({f"{figure.top1:.1%}: {figure.source}" for figure in figures.values() if figure}):
        console.print(f"  {source}", markup=False)


def write_results(found: Found, folder: Path) -> list[Path]:
    """Write the pictures, the lists of labeled subsets and evaluation.json, all or none; return their paths.

    Raises:
        OSError: the folder cannot be written.
    """
    by_key = {score.key: score for score in found.scores}
    shown = next((by_key[key] for key in _CONFUSION_OF if key in by_key), None)
    with files.together(folder, "evaluation") as fresh:
        for score in found.scores:
            for name, text in score.files.items():
                files.write_text(fresh / name, text)
        if shown is not None and found.test_labels is not None:
            labels, names, bars = found.test_labels, found.class_names, by_key.get("knn", shown)
            pictures.confusion(shown.predicted, labels, names, fresh / "confusion.png", title=shown.title)
            pictures.per_class(bars.predicted, labels, names, fresh / "per_class.png", title=bars.title)
        files.write_text(fresh / EVALUATION, json.dumps(flat(found), indent=2, allow_nan=False) + "\n")
        written = sorted(fresh.iterdir())
    return [folder / path.name for path in written]


def flat(found: Found) -> dict[str, Any]:
    """Return the content of evaluation.json, one flat object; docs/evaluation.md explains the keys."""
    result = dict(found.head)
    for score in found.scores:
        low, high = score.interval
        result |= {f"{score.key}_top1": score.mean, f"{score.key}_low": low, f"{score.key}_high": high}
        if len(score.top1) > 1:
            result[f"{score.key}_top1_seeds"] = list(score.top1)
        if score.key in found.untrained:
            result[f"{score.key}_top1_untrained"] = found.untrained[score.key].mean
        figure = published(found.data, found.spec, score.key)
        if figure:
            result[f"{score.key}_top1_published"] = figure.top1
        result |= {f"{score.key}_seconds": round(score.seconds, 1), **score.details}
    return result
