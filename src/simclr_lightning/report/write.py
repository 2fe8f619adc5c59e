"""From a folder of runs to report.md, report.html, runs.csv and their pictures, written directly in it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simclr_lightning.report import blocks, content, draw
from simclr_lightning.report.grouping import Setting, choose_axes, settings, swept_keys
from simclr_lightning.report.runs import ReportError, Run, read_runs

_OF_THE_RUN = ("views.png", "neighbours.png", "embedding.png")
_CAPTIONS = ("Two views of each image.", "Nearest neighbours of test images.", "Map of the representation of test.")


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        folder: where.
        files: names of the files in it.
        headline: the sentence that says what won.
        notes: what was skipped.
    """

    folder: Path
    files: tuple[str, ...]
    headline: str
    notes: tuple[str, ...]


def write_report(folder: Path, axes: Sequence[str] | None = None) -> Report:
    """Report on the run or the sweep in a folder; files of an earlier report are replaced.

    Args:
        folder: of a run, or with runs anywhere below it.
        axes: one or two swept keys for the pictures; None takes loss.temperature and data.batch_size where they were
            swept, else the first keys that were.

    Raises:
        ReportError: there is no run that can be read, the axes were not swept, or the folder cannot be written.
    """
    runs, notes = read_runs(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReportError(f"{folder} cannot be written, and the report is written into it; copy the runs elsewhere")
    keys = swept_keys(runs)
    chosen = choose_axes(keys, axes)
    groups = settings(runs, keys)
    drawn = {name: make(folder / name) for name, make in draw.all_pictures(runs, groups, keys, chosen).items()}
    for name, picture in drawn.items():
        if picture is None:  # of an earlier report
            (folder / name).unlink(missing_ok=True)
    shown = [picture for picture in drawn.values() if picture is not None]
    if len(runs) == 1:
        own = zip(_OF_THE_RUN, _CAPTIONS, strict=True)
        shown += [blocks.Picture(name, caption) for name, caption in own if (folder / name).is_file()]
    title = f"Report of {folder.absolute().name}"
    verdicts = content.verdicts(groups, keys, runs)
    body = [*_head(verdicts, runs), *_pictures(shown), *_tables(runs, groups, keys, notes)]
    texts = {
        "runs.csv": runs_csv(runs, keys),
        "report.md": blocks.markdown(title, body),
        "report.html": blocks.html(title, body, folder),
    }
    from simclr_lightning.files import write_text

    for name, text in texts.items():
        write_text(folder / name, text)
    headline = next((block.text for block in verdicts if isinstance(block, blocks.Paragraph)), "")
    pngs = [name for name, picture in drawn.items() if picture is not None]
    return Report(folder, (*texts, *pngs), headline, tuple(notes))


def runs_csv(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """One row a run: its words, the swept keys, all of summary.json, and the last value of each metric.

    Columns of metrics hold a slash, apart from lr, and so meet no field of the summary.
    """
    own = ("run", "status", "reason", "seed", "overrides")  # known of every run, finished or not
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
    says = blocks.Paragraph(f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {finished} finished.")
    return [*verdicts, says, *content.kept_equal(runs)]


def _pictures(shown: list[blocks.Picture]) -> list[blocks.Block]:
    return [blocks.Heading("Pictures"), *shown] if shown else []


def _tables(runs: list[Run], groups: list[Setting], keys: list[str], notes: list[str]) -> list[blocks.Block]:
    return [
        *content.settings_table(groups, keys),
        *content.beside_the_paper(groups, keys),
        *content.runs_table(runs, keys),
        *content.unfinished(runs, notes),
    ]
