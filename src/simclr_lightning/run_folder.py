"""Read and write the open files of a run's or a sweep's folder: their names, and the only reader of each.

The files are plain JSON, YAML and CSV. Checkpoints are in `simclr_lightning.checkpoint`, the exported encoder in
`simclr_lightning.export`.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from simclr_lightning.files import write_text
from simclr_lightning.selection import selected

CONFIG, OVERRIDES, HYDRA = ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"
SUMMARY, METRICS, SIMILARITY = "summary.json", "metrics.csv", "similarity.csv"
LOG = "train.log"
OUTPUT = "output.log"  # what a job of a sweep prints
EVALUATION = "evaluation.json"
CHECKPOINTS, EXPORTED, FEATURES = "checkpoints", "exported", "features"
MANIFEST = "sweep.yaml"  # in a sweep's folder: the sweep's overrides, and those of each job by its folder's name

_TAIL: Final = 1 << 16  # bytes that are read of a long file of a running job
_TOTAL: Final = re.compile(r"step \d+/(\d+)|, (\d+) steps$", re.MULTILINE)
_ERROR: Final = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")
_LINES_OF_AN_ERROR: Final = 5

Row = dict[str, float]


class RunFolderError(ValueError):
    """A file of a run's folder cannot be read; the message names the file."""


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's: it holds a configuration or a summary."""
    return (folder / CONFIG).is_file() or (folder / SUMMARY).is_file()


def is_job(folder: Path) -> bool:
    """Return whether a run's folder lies in a sweep's folder."""
    return (folder.parent / MANIFEST).exists()


def read_summary(run: Path) -> dict[str, Any]:
    """Return summary.json; empty when there is none, or when it cannot be read."""
    try:
        return read_summary_strictly(run)
    except RunFolderError:
        return {}


def read_summary_strictly(run: Path) -> dict[str, Any]:
    """Return summary.json; empty when there is none.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = run / SUMMARY
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read ({error})") from error
    if not isinstance(summary, dict):
        raise RunFolderError(f"{path} is not a JSON object")
    return summary


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    write_text(run / SUMMARY, json.dumps(dict(summary), indent=2, allow_nan=False) + "\n")


def read_saved_config(run: Path) -> dict[str, Any]:
    """Return the resolved configuration that a run was started with; empty when there is none.

    Raises:
        RunFolderError: the file is damaged.
    """
    saved = _yaml(run / CONFIG)
    return {str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {}


def read_overrides(run: Path) -> list[str]:
    """Return the overrides that a run was started with; empty when there is no file.

    Raises:
        RunFolderError: the file is damaged.
    """
    saved = _yaml(run / OVERRIDES)
    if saved is not None and not isinstance(saved, list):
        raise RunFolderError(f"{run / OVERRIDES} is not a list of overrides")
    return [str(override) for override in saved or ()]


def read_manifest(sweep: Path) -> dict[str, Any]:
    """Return the overrides of a sweep's jobs by the name of their folder; empty when there are none."""
    try:
        jobs = (_yaml(sweep / MANIFEST) or {}).get("jobs")
    except (RunFolderError, AttributeError):
        return {}
    return jobs if isinstance(jobs, dict) else {}


def write_manifest(sweep: Path, overrides: list[str], jobs: Mapping[str, str]) -> None:
    """Write the overrides of a sweep, and those of its jobs by the name of their folder."""
    named = {"jobs": read_manifest(sweep) | dict(jobs), "words": overrides}
    write_text(sweep / MANIFEST, yaml.safe_dump(named, allow_unicode=True, sort_keys=False))


def read_cells(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the rows of a CSV file as texts."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file such as metrics.csv; cells that hold no finite number are left out."""
    if path.exists():
        yield from map(_numbers, read_cells(path)[1])


def online_scores(row: Row) -> dict[str, float]:
    """Return the scores of a row of metrics.csv by their names, without the prefix ``online/``."""
    return {name.removeprefix("online/"): value for name, value in row.items() if name.startswith("online/")}


def last_metrics(run: Path, select: str) -> dict[str, float | None]:
    """Return the last epoch's figures from metrics.csv, which also holds what earlier processes of the run measured.

    Every ``online/NAME`` becomes ``online_NAME``. ``held_out_score`` is what sweepers maximize: the score that
    ``select`` names, on the held-out part of train, with the sign under which higher is better.
    """
    names = ("loss", "contrastive_accuracy", "contrastive_entropy")
    found: dict[str, float | None] = dict.fromkeys(names)
    online: dict[str, float] = {}
    for row in read_table(run / METRICS):
        found |= {name: row[f"train/{name}"] for name in names if f"train/{name}" in row}
        online |= online_scores(row)
    return {**found, "held_out_score": selected(online, select), **{f"online_{k}": v for k, v in online.items()}}


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: optimizer steps done, by the last row of metrics.csv.
        total: optimizer steps of the whole run; None before they are known.
        score: the latest score on the held-out part of train that ``select`` names, higher is better.
    """

    step: int = 0
    total: int | None = None
    score: float | None = None


def read_progress(run: Path) -> Progress:
    """Return a running job's progress, from the ends of metrics.csv and train.log and from its configuration."""
    totals = _TOTAL.findall(_tail(run / LOG))
    total = int("".join(totals[-1])) if totals else None
    step, online = 0, dict[str, float]()
    for row in _last_rows(run / METRICS):
        step = int(row["step"])
        online |= online_scores(row)
    return Progress(step, total, selected(online, _select(run)) if online else None)


def error_of(run: Path) -> list[str]:
    """Return the last error message in a run's output.log or train.log, at most five lines; empty without one."""
    for name in (OUTPUT, LOG):
        lines = _tail(run / name).splitlines()
        starts = [place for place, line in enumerate(lines) if _ERROR.match(line)]
        if starts:
            return lines[starts[-1] :][:_LINES_OF_AN_ERROR]
    return []


def last_output(run: Path) -> list[str]:
    """Return the last three lines that a job of a sweep printed."""
    return [line for line in _tail(run / OUTPUT).splitlines() if line.strip()][-3:]


def shown(folder: Path) -> str:
    """Return a folder as a user would type it from the current folder."""
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)


def typed(path: Path) -> str:
    """Return a path as a user would type it in a shell, as an argument or as the value of a path key.

    >>> typed(Path("a run's"))
    '\'a run\'"\'"\'s\''
    """
    text = shown(path)
    is_keyword = text.strip().lower() in ("last", "null", "imagenet")
    return shlex.quote(f"./{text}" if is_keyword or not re.match(r"[\w./]", text) else text)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted key; lists and empty dictionaries are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def as_number(value: Any) -> float | None:
    """Return a finite number as a float, and None for everything else, ``true`` included."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8")) if path.exists() else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunFolderError(f"{path} cannot be read") from error


def _select(run: Path) -> str:
    """Return what ``select`` is in a run's saved configuration."""
    try:
        return str(read_saved_config(run).get("select", "auto"))
    except RunFolderError:
        return "auto"


def _last_rows(path: Path) -> list[Row]:
    """Return the last rows of a CSV file with a column ``step``, the torn ones left out."""
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline()
    except OSError:
        return []
    rows = csv.DictReader([header, *_tail(path).splitlines()[1:]])  # the first line is the header, or torn
    whole = (row for row in rows if None not in row and None not in row.values())
    return [_numbers(row) for row in whole if (row.get("step") or "").isdigit()]


def _numbers(row: Mapping[Any, Any]) -> Row:
    found: Row = {}
    for name, text in row.items():
        try:
            value = float(text)
        except (TypeError, ValueError):
            continue
        if isinstance(name, str) and name and math.isfinite(value):
            found[name] = value
    return found


def _tail(path: Path) -> str:
    """Return the end of a text file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
