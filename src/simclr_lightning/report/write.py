"""Write report.md, report.html, runs.csv and PNG files into a folder of runs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simclr_lightning.files import write_text
from simclr_lightning.report import blocks, content, draw
from simclr_lightning.report.grouping import Setting, choose_axes, settings, swept_keys
from simclr_lightning.report.runs import ReportError, Run, read_runs

# Pictures that a run itself has drawn.
_CAPTIONS = {
    "views.png": "Two views of each image.",
    "neighbours.png": "Nearest neighbors of test images.",
    "embedding.png": "Map of the features of test images.",
}


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        folder: contains the report.
        files: names of the written files.
        headline: the sentence with the main result.
        notes: one sentence for each folder that was skipped.
    """

    folder: Path
    files: tuple[str, ...]
    headline: str
    notes: tuple[str, ...]


def write_report(folder: Path, axes: Sequence[str] | None = None) -> Report:
    """Write a report on the run or the sweep in a folder; files of an earlier report are replaced.

    Args:
        folder: the folder of a run, or a folder that contains runs at any depth.
        axes: one or two swept keys for the axes of the pictures; None: the first two swept keys (loss.temperature and
            data.batch_size come first).

    Raises:
        ReportError: no run can be read, an axis was not swept, or the folder is not writable.
    """
    runs, notes = read_runs(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReportError(f"{folder} cannot be written, and the report goes into it: copy the runs to another folder")
    keys = swept_keys(runs)
    chosen = choose_axes(keys, axes)
    groups = settings(runs, keys)
    drawn = {name: make(folder / name) for name, make in draw.all_pictures(runs, groups, keys, chosen).items()}
    for name, picture in drawn.items():
        if picture is None:  # remove the file of an earlier report
            (folder / name).unlink(missing_ok=True)
    shown = [picture for picture in drawn.values() if picture is not None]
    if len(runs) == 1:
        shown += [blocks.Picture(name, text) for name, text in _CAPTIONS.items() if (folder / name).is_file()]
    title = f"Report of {folder.absolute().name}"
    verdicts = content.verdicts(groups, keys, runs)
    body = [*_head(verdicts, runs), *_pictures(shown), *_tables(runs, groups, keys, notes)]
    texts = {
        "runs.csv": runs_csv(runs, keys),
        "report.md": blocks.markdown(title, body),
        "report.html": blocks.html(title, body, folder),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    headline = next((block.text for block in verdicts if isinstance(block, blocks.Paragraph)), "")
    pngs = [name for name, picture in drawn.items() if picture is not None]
    return Report(folder, (*texts, *pngs), headline, tuple(notes))


def runs_csv(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """Return runs.csv, one row for each run: overrides, swept keys, fields of summary.json, last value of each metric.

    Names of metrics contain a slash, except lr, so they differ from the fields of summary.json.
    """
    own = ("run", "status", "reason", "seed", "overrides")  # every run has these, finished or not
    fields = list(dict.fromkeys(field for run in runs for field in run.summary if field not in own))
    metrics = list(dict.fromkeys(name for run in runs for row in run.metrics for name in row))
    metrics = [name for name in metrics if name not in ("step", "epoch", *fields)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*own, *keys, *fields, *metrics])
    for run in runs:
        writer.writerow(
            [
                *(run.name, run.status, run.reason, run.seed, " ".join(run.overrides)),
                *(run.value(key) for key in keys),
                *(run.summary.get(field) for field in fields),
                *(run.last(name) for name in metrics),
            ]
        )
    return text.getvalue()


def _head(verdicts: list[blocks.Block], runs: list[Run]) -> list[blocks.Block]:
    finished = sum(run.finished for run in runs)
    count = blocks.Paragraph(f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {finished} finished.")
    return [*verdicts, count, *content.run_lengths(runs)]


def _pictures(shown: list[blocks.Picture]) -> list[blocks.Block]:
    return [blocks.Heading("Pictures"), *shown] if shown else []


def _tables(runs: list[Run], groups: list[Setting], keys: list[str], notes: list[str]) -> list[blocks.Block]:
    return [
        *content.settings_table(groups, keys),
        *content.paper_tables(groups, keys),
        *content.runs_table(runs, keys),
        *content.unfinished(runs, notes),
    ]
