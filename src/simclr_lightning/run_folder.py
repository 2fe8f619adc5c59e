"""Name, read and write the JSON, YAML and CSV files in the folder of a run or a sweep.

No other module parses these files. `simclr_lightning.checkpoint` reads and writes checkpoints,
`simclr_lightning.export` the exported encoder.
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
OUTPUT = "output.log"  # the output of a job of a sweep
EVALUATION = "evaluation.json"
POINTS = "features/map.npz"  # of a job of a sweep: the features of the map that the report draws
CHECKPOINTS, EXPORTED, FEATURES = "checkpoints", "exported", "features"
MANIFEST = "sweep.yaml"  # in a sweep's folder: the overrides of the sweep, and of each job by the name of its folder

_TAIL: Final = 1 << 16  # bytes read from the end of a long file of a running job
_TOTAL: Final = re.compile(r"step \d+/(\d+)|, (\d+) steps$", re.MULTILINE)
_ERROR: Final = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")
_LINES_OF_AN_ERROR: Final = 5

Row = dict[str, float]


class RunFolderError(ValueError):
    """A file in a run's folder is damaged; the message names the file."""


def is_run(folder: Path) -> bool:
    """Return whether a folder contains a run: a saved configuration or a summary."""
    return (folder / CONFIG).is_file() or (folder / SUMMARY).is_file()


def is_job(folder: Path) -> bool:
    """Return whether a run's folder is in a sweep's folder."""
    return (folder.parent / MANIFEST).exists()


def read_summary(run: Path) -> dict[str, Any]:
    """Return the content of summary.json; empty if it is missing or damaged."""
    try:
        return read_summary_strictly(run)
    except RunFolderError:
        return {}


def read_summary_strictly(run: Path) -> dict[str, Any]:
    """Return the content of summary.json; empty if it is missing.

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
    """Return the resolved configuration of a run from .hydra/config.yaml; empty if the file is missing.

    Raises:
        RunFolderError: the file is damaged.
    """
    saved = _yaml(run / CONFIG)
    return {str(key): value for key, value in saved.items()} if isinstance(saved, dict) else {}


def read_overrides(run: Path) -> list[str]:
    """Return the overrides of a run from .hydra/overrides.yaml; empty if the file is missing.

    Raises:
        RunFolderError: the file is damaged.
    """
    saved = _yaml(run / OVERRIDES)
    if saved is not None and not isinstance(saved, list):
        raise RunFolderError(f"{run / OVERRIDES} is not a list of overrides")
    return [str(override) for override in saved or ()]


def read_manifest(sweep: Path) -> dict[str, Any]:
    """Return the overrides of each job of a sweep by the name of its folder; empty if sweep.yaml is missing."""
    try:
        jobs = (_yaml(sweep / MANIFEST) or {}).get("jobs")
    except (RunFolderError, AttributeError):
        return {}
    return jobs if isinstance(jobs, dict) else {}


def write_manifest(sweep: Path, overrides: list[str], jobs: Mapping[str, str]) -> None:
    """Write sweep.yaml: the overrides of a sweep, and of each job by the name of its folder; older jobs stay."""
    named = {"jobs": read_manifest(sweep) | dict(jobs), "words": overrides}
    write_text(sweep / MANIFEST, yaml.safe_dump(named, allow_unicode=True, sort_keys=False))


def read_cells(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns of a CSV file, and its rows, as texts."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file such as metrics.csv; cells without a finite number are left out."""
    if path.exists():
        yield from map(_numbers, read_cells(path)[1])


def online_scores(row: Row) -> dict[str, float]:
    """Return the scores of a row of metrics.csv by their names, without the prefix ``online/``."""
    return {name.removeprefix("online/"): value for name, value in row.items() if name.startswith("online/")}


def last_metrics(run: Path, select: str) -> dict[str, float | None]:
    """Return the last value of each metric in metrics.csv, which has the rows of all processes of a run.

    Every ``online/NAME`` becomes ``online_NAME``. Sweepers maximize ``held_out_score``: the score that ``select``
    names, on the held-out part of train, negated if lower is better.
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
    """The progress of a running job.

    Attributes:
        step: the optimizer step in the last row of metrics.csv.
        total: optimizer steps of the whole run; None until train.log names them.
        score: the latest score on the held-out part of train that ``select`` names, higher is better.
    """

    step: int = 0
    total: int | None = None
    score: float | None = None


def read_progress(run: Path) -> Progress:
    """Return the progress of a running job, read from the ends of metrics.csv and train.log."""
    totals = _TOTAL.findall(_tail(run / LOG))
    total = int("".join(totals[-1])) if totals else None
    step, online = 0, dict[str, float]()
    for row in _last_rows(run / METRICS):
        step = int(row["step"])
        online |= online_scores(row)
    return Progress(step, total, selected(online, _select(run)) if online else None)


def error_of(run: Path) -> list[str]:
    """Return the last error message in a run's output.log or train.log, at most five lines; empty if there is none."""
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
    """Return the path of a folder relative to the current folder, or as it is if it is elsewhere."""
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)


def typed(path: Path) -> str:
    """Return a path as a user would type it in a shell, as an argument or as the value of a path key.

    >>> print(typed(Path("my run")))
    'my run'
    """
    text = shown(path)
    is_keyword = text.strip().lower() in ("last", "null", "imagenet")
    return shlex.quote(f"./{text}" if is_keyword or not re.match(r"[\w./]", text) else text)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted key; a list or an empty dictionary is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def as_number(value: Any) -> float | None:
    """Return a finite number as a float; None for any other value, including booleans."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text("utf-8")) if path.exists() else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunFolderError(f"{path} cannot be read") from error


def _select(run: Path) -> str:
    """Return the value of ``select`` in a run's saved configuration."""
    try:
        return str(read_saved_config(run).get("select", "auto"))
    except RunFolderError:
        return "auto"


def _last_rows(path: Path) -> list[Row]:
    """Return the last rows of a CSV file with a column ``step``, without incomplete rows."""
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline()
    except OSError:
        return []
    rows = csv.DictReader([header, *_tail(path).splitlines()[1:]])  # the first line is the header or incomplete
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
    """Return the last `_TAIL` bytes of a text file; empty if it is missing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
