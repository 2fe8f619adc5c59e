"""Reading what runs left: their words, configuration, summary, metrics and histograms; nothing is written."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, float]


class ReportError(ValueError):
    """A folder that no report can be made of; the message says why."""


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Attributes:
        name: its folder, relative to the report's.
        words: the overrides that it was started with.
        config: the resolved configuration by dotted keys; lists are values.
        summary: summary.json, empty when there is none.
        metrics: the rows of metrics.csv, numbers only.
        similarity: the whole rows of similarity.csv.
        log: the last line of output.log (what a sweep's job printed) or train.log that tells an error, or "".
    """

    name: str
    words: tuple[str, ...]
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: tuple[Row, ...]
    similarity: tuple[Row, ...]
    log: str = ""

    @property
    def status(self) -> str:
        """finished, stopped or failed as the run says; unfinished where it says nothing."""
        return str(self.summary.get("status", "unfinished"))

    @property
    def finished(self) -> bool:
        """Whether its scores are those of the whole run."""
        return self.status == "finished"

    @property
    def seed(self) -> Any:
        """The seed of its weights, order and views."""
        return self.summary.get("seed", self.config.get("seed"))

    @property
    def reason(self) -> str:
        """Why it is not finished; empty where it is."""
        if self.finished:
            return ""
        step = self.last("step")
        where = "before its first row of metrics" if step is None else f"after step {step:.0f}"
        if self.status == "unfinished":
            return f"no summary.json: it was killed {where}, or is still running"
        if told := str(self.summary.get("reason") or self.log):
            return " ".join(told.split())
        return f"{self.status} {where}; train.log may say why"

    def value(self, key: str) -> Any:
        """What a key of the command line was: the configuration's value, or the word's text for a group."""
        if key in self.config:
            value = self.config[key]
            return str(value) if isinstance(value, list) else value
        return next((text for name, text in map(split_word, self.words) if name == key), None)

    def number(self, key: str) -> float | None:
        """A finite number of summary.json."""
        return as_number(self.summary.get(key))

    def last(self, name: str) -> float | None:
        """The last value of a column of metrics.csv."""
        return next((row[name] for row in reversed(self.metrics) if name in row), None)


def read_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """All runs in or below a folder, by name, and notes on what was skipped.

    A run is a folder that holds summary.json or .hydra/config.yaml. One whose summary.json cannot be read is skipped.

    Raises:
        ReportError: the folder is missing, holds no run, or no summary.json of it can be read.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: there is no such folder; give a run's or a sweep's")
    found = {path.parent for path in folder.rglob("summary.json")}
    found |= {path.parent.parent for path in folder.rglob("config.yaml") if path.parent.name == ".hydra"}
    if not found:
        raise ReportError(f"{folder} holds no run (no summary.json, no .hydra/config.yaml in it or below)")
    runs, notes = [], []
    for path in sorted(found, key=lambda path: _natural(str(path.relative_to(folder)))):
        try:
            runs.append(_read(path, folder))
        except (ValueError, OSError, RecursionError, csv.Error) as error:
            notes.append(f"{path.relative_to(folder)} was skipped: {error}")
    if not runs:
        raise ReportError(f"no run in {folder} can be read; the first: {notes[0]}")
    return runs, notes


def split_word(word: str) -> tuple[str, str]:
    """The key and the value of a word such as ``+loss.temperature=0.1``."""
    key, _, text = word.lstrip("+~").partition("=")
    return key, text


def as_number(value: Any) -> float | None:
    """A finite number, or None for everything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _read(path: Path, root: Path) -> Run:
    relative = path.relative_to(root)
    return Run(
        name=root.absolute().name if relative == Path() else str(relative),
        words=_words(path / ".hydra" / "overrides.yaml"),
        config=dict(_flat(_yaml(path / ".hydra" / "config.yaml") or {})),
        summary=_summary(path / "summary.json"),
        metrics=tuple(_table(path / "metrics.csv")),
        similarity=tuple(row for row in _table(path / "similarity.csv") if _is_whole(row)),
        log=_last_error(path / "output.log") or _last_error(path / "train.log"),
    )


def _words(path: Path) -> tuple[str, ...]:
    words = _yaml(path) or []
    if not isinstance(words, list):
        raise ValueError(f"its .hydra/{path.name} is not a list of words")
    return tuple(map(str, words))


def _summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"its summary.json cannot be read ({error})") from error
    if not isinstance(summary, dict):
        raise ValueError("its summary.json is not an object")
    return summary


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8")) if path.exists() else None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"its .hydra/{path.name} cannot be read") from error


def _table(path: Path) -> Iterator[Row]:
    """Rows of numbers; cells that hold none (a row cut off by a kill) are left out."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            yield {name: float(text) for name, text in row.items() if isinstance(name, str) and _is_number(text)}


def _is_whole(row: Row) -> bool:
    """Whether it is a bin of a histogram, with its counts."""
    return {"step", "low", "high", "positives", "negatives"} <= row.keys() and row["low"] < row["high"]


def _is_number(text: Any) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, part in node.items():
            yield from _flat(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _last_error(path: Path) -> str:
    """The last line of a log that tells an error."""
    if not path.exists():
        return ""
    told = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if told.match(line)), "")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
