"""Read the folders of runs: overrides, configuration, summary, metrics and histograms; nothing is written."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simclr_lightning.overrides import split
from simclr_lightning.run_folder import (
    CONFIG,
    METRICS,
    SIMILARITY,
    SUMMARY,
    Row,
    as_number,
    error_of,
    flatten,
    read_overrides,
    read_saved_config,
    read_summary_strictly,
    read_table,
)


class ReportError(ValueError):
    """A folder from which no report can be made; the message has the reason."""


@dataclass(frozen=True)
class Run:
    """One run, as its folder records it.

    Attributes:
        name: its folder, relative to the report's.
        overrides: the overrides that it was started with.
        config: the resolved configuration by dotted keys; lists are values.
        summary: summary.json, empty when there is none.
        metrics: the rows of metrics.csv, numbers only.
        similarity: the whole rows of similarity.csv.
        log: the first line of the last error in output.log (what a sweep's job printed) or train.log, or "".
    """

    name: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: tuple[Row, ...]
    similarity: tuple[Row, ...]
    log: str = ""

    @property
    def status(self) -> str:
        """finished, stopped or failed, by summary.json; unfinished without one."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def finished(self) -> bool:
        """Whether the scores are those of the whole run."""
        return self.status == "finished"

    @property
    def seed(self) -> Any:
        """The seed of the weights, the order and the views."""
        return self.summary.get("seed", self.config.get("seed"))

    @property
    def reason(self) -> str:
        """Why the run is not finished; empty for a finished one."""
        if self.finished:
            return ""
        step = self.last("step")
        where = "before its first row of metrics" if step is None else f"after step {step:.0f}"
        if self.status == "unfinished":
            return f"no summary.json: it was killed {where}, or is still running"
        if reason := str(self.summary.get("reason") or self.log):
            return " ".join(reason.split())
        return f"{self.status} {where}; train.log may say why"

    def value(self, key: str) -> Any:
        """Return a key's value in the configuration, or a group's option by its override; None without one."""
        if key in self.config:
            value = self.config[key]
            return str(value) if isinstance(value, list) else value
        return next((text for name, text in map(split, self.overrides) if name == key), None)

    def number(self, key: str) -> float | None:
        """Return a finite number of summary.json; None for anything else."""
        return as_number(self.summary.get(key))

    def last(self, name: str) -> float | None:
        """Return the last value of a column of metrics.csv; None without one."""
        return next((row[name] for row in reversed(self.metrics) if name in row), None)


def read_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Return all runs in or below a folder, sorted by name, and notes on skipped ones.

    A run is a folder that holds summary.json or .hydra/config.yaml. One whose summary.json cannot be read is skipped.

    Raises:
        ReportError: the folder is missing, holds no run, or no summary.json of it can be read.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: there is no such folder; give a run's or a sweep's")
    found = {path.parent for path in folder.rglob(SUMMARY)}
    found |= {path.parent.parent for path in folder.rglob(CONFIG)}
    if not found:
        raise ReportError(f"{folder} holds no run (no summary.json, no .hydra/config.yaml in it or below)")
    runs, notes = [], []
    for path in sorted(found, key=lambda path: _natural(str(path.relative_to(folder)))):
        try:
            runs.append(_read(path, folder))
        except (ValueError, OSError, RecursionError, csv.Error) as error:
            notes.append(f"{path.relative_to(folder)} was skipped: {str(error).replace(f'{path}/', 'its ')}")
    if not runs:
        raise ReportError(f"no run in {folder} can be read; the first: {notes[0]}")
    return runs, notes


def _read(path: Path, root: Path) -> Run:
    relative = path.relative_to(root)
    return Run(
        name=root.absolute().name if relative == Path() else str(relative),
        overrides=tuple(read_overrides(path)),
        config=flatten(read_saved_config(path)),
        summary=read_summary_strictly(path),
        metrics=tuple(read_table(path / METRICS)),
        similarity=tuple(row for row in read_table(path / SIMILARITY) if _is_whole(row)),
        log=next(iter(error_of(path)), ""),
    )


def _is_whole(row: Row) -> bool:
    """Return whether a row is a bin of a histogram, with its counts."""
    return {"step", "low", "high", "positives", "negatives"} <= row.keys() and row["low"] < row["high"]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
