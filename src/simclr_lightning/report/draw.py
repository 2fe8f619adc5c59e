"""Prepare the pictures of a report from runs and settings; `simclr_lightning.pictures` draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simclr_lightning import pictures
from simclr_lightning.report import metrics
from simclr_lightning.report.blocks import Picture
from simclr_lightning.report.content import levels
from simclr_lightning.report.grouping import Setting, Spread
from simclr_lightning.report.metrics import Metric, shown
from simclr_lightning.report.runs import Run
from simclr_lightning.run_folder import POINTS, Row

_FEW_EPOCHS = 5  # runs with fewer epochs have their curves drawn over steps
_COLUMNS, _ROWS = 4, 4  # the maximum numbers of columns and rows of histograms
_LOGGED = 3  # a histogram adds up the last logged steps of a run, because one step has the positives of one batch only
# Names of columns in metrics.csv; with "_step" the means of a few steps.
_CURVES = {
    "loss": "train/loss",
    "contrastive accuracy": "train/contrastive_accuracy",
    "contrastive entropy, nats": "train/contrastive_entropy",
}
_ONLINE = {"kNN on held-out train": "online/knn_top1", "NT-Xent on held-out train": "online/held_out_loss"}

Draw = Callable[[Path], Picture | None]


def all_pictures(runs: list[Run], groups: list[Setting], keys: list[str], axes: list[str]) -> dict[str, Draw]:
    """Return a function for each picture by file name; it draws the file, or returns None without data."""
    finished = [run for run in runs if run.finished]
    return {
        "score.png": lambda path: _score(finished, groups, keys, axes, path),
        "curves.png": lambda path: _curves(runs, keys, axes, path),
        "hardness.png": lambda path: _hardness(groups, keys, axes, path),
        "similarity.png": lambda path: _similarity(runs, groups, keys, axes, path),
        "best_map.png": lambda path: _best_map(finished, path),
    }


def _best_map(finished: list[Run], path: Path) -> Picture | None:
    """Draw the map of the run with the highest held-out score, from the features that a job of a sweep stores."""
    scored = [run for run in finished if isinstance(run.summary.get("held_out_score"), float)]
    if len(finished) < 2 or not scored:
        return None
    best = max(scored, key=lambda run: float(run.summary["held_out_score"]))
    points = path.parent / best.name / POINTS
    if not points.is_file():
        return None
    try:
        pictures.map_of_points(points, path)
    except (OSError, ValueError):  # a damaged file costs this picture, not the report
        return None
    return Picture(path.name, f"Map of the features of {best.name}, the run with the highest held-out score.")


def _score(finished: list[Run], groups: list[Setting], keys: list[str], axes: list[str], path: Path) -> Picture | None:
    found = [metric for metric in metrics.scores(finished) if metric.scale == 100]
    if not axes or not found or len(groups) < 2:
        return None
    if len(axes) == 1:
        pictures.trends({metric.name: _line(metric, groups, keys, axes[0]) for metric in found}, path, x=axes[0])
        return Picture(path.name, f"Scores over {axes[0]}: means, with one standard deviation over the runs.")
    x, y = (levels(groups, keys.index(axis)) for axis in axes)
    maps = [_heat_map(metric, groups, keys, axes) for metric in found]
    pictures.heat_maps(maps, path, x=x, y=y, names=(axes[0], axes[1]))
    others = [key for key in keys if key not in axes]
    best = f" Each cell shows the best setting of {', '.join(others)}." if others else ""
    return Picture(
        path.name,
        f"Scores over {axes[0]} and {axes[1]}: mean ± standard deviation over seeds; the best cell is framed.{best}",
    )


def _heat_map(metric: Metric, groups: list[Setting], keys: list[str], axes: list[str]) -> pictures.HeatMap:
    cells: dict[tuple[Any, Any], tuple[float, float | None]] = {}
    for group in groups:
        found, place = group.spread(metric.read), _place(group, keys, axes)
        if found is not None and (place not in cells or cells[place][0] < found.mean * metric.scale):
            cells[place] = _scaled(metric, found)
    best = max(cells, key=lambda place: cells[place][0])
    return pictures.HeatMap(metric.name, cells, best)


def _place(group: Setting, keys: list[str], axes: Sequence[str]) -> tuple[Any, Any]:
    return group.values[keys.index(axes[0])], group.values[keys.index(axes[1])]


def _scaled(metric: Metric, found: Spread) -> tuple[float, float | None]:
    deviation = None if found.deviation is None else found.deviation * metric.scale
    return found.mean * metric.scale, deviation


def _line(
    metric: Metric, groups: list[Setting], keys: list[str], axis: str
) -> dict[tuple[str, ...], list[tuple[Any, float, float | None]]]:
    """Return the points over one swept key, in a line for each combination of values of the other keys."""
    lines: dict[tuple[str, ...], list[tuple[Any, float, float | None]]] = {}
    place = keys.index(axis)
    for group in groups:
        found = group.spread(metric.read)
        if found is not None:
            rest = tuple(_named(key, value) for key, value in zip(keys, group.values, strict=True) if key != axis)
            lines.setdefault(rest, []).append((group.values[place], *_scaled(metric, found)))
    return lines


def _named(key: str, value: Any) -> str:
    return f"{key.rpartition('.')[2]}={shown(value)}"


def _curves(runs: list[Run], keys: list[str], axes: list[str], path: Path) -> Picture | None:
    first = [*axes, *(key for key in keys if key not in axes)]
    by_epoch = max((sum("train/loss" in row for row in run.metrics) for run in runs), default=0) >= _FEW_EPOCHS
    x, suffix = ("epoch", "") if by_epoch else ("step", "_step")
    online = "online/knn_top1" if any("online/knn_top1" in row for run in runs for row in run.metrics) else ""
    columns = {name: column + suffix for name, column in _CURVES.items()}
    columns |= {name: column for name, column in _ONLINE.items() if online in ("", column)}
    lines: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        lines.setdefault(tuple(_named(key, run.value(key)) for key in first), []).append(run)
    drawn = {name: _mean_rows(group, columns, x) for name, group in lines.items()}
    if not any(drawn.values()):
        return None
    pictures.curves(drawn, path, x=x)
    return Picture(path.name, f"Training over {x}s: means over seeds. Held-out scores use the held-out tenth of train.")


def _mean_rows(group: list[Run], columns: Mapping[str, str], x: str) -> list[dict[str, float | None]]:
    """Return the mean over runs of each column, for each value of ``x`` that a run has."""
    found: dict[float, dict[str, list[float]]] = {}
    for row in (row for run in group for row in run.metrics if x in row):
        for name, column in columns.items():
            if column in row:
                found.setdefault(row[x] + (x == "epoch"), {}).setdefault(name, []).append(row[column])
    return [{x: at, **{name: sum(values) / len(values) for name, values in found[at].items()}} for at in sorted(found)]


def _hardness(groups: list[Setting], keys: list[str], axes: list[str], path: Path) -> Picture | None:
    found = metrics.known(metrics.HARDNESS, [run for group in groups for run in group.runs])
    if not axes or not found:
        return None
    pictures.trends({_folded(metric.name): _line(metric, groups, keys, axes[0]) for metric in found}, path, x=axes[0])
    return Picture(
        path.name,
        "How hard the negatives are at the end of training: the share of the negatives' gradient on the most similar "
        "1 % and 10 % of them (1 % and 10 % if all had equal weight), the effective number of negatives, and the share "
        "of negatives that have the class of the image itself.",
    )


def _folded(name: str) -> str:
    """Break a long name into two lines near its middle."""
    middle = name.find(" ", len(name) // 2)
    return name if middle < 0 else f"{name[:middle]}\n{name[middle + 1 :]}"


def _similarity(runs: list[Run], groups: list[Setting], keys: list[str], axes: list[str], path: Path) -> Picture | None:
    """Draw histograms at the last logged steps, over the first key; of a single run, over its steps."""
    seen = [run for run in runs if run.similarity]
    if not seen:
        return None
    if len(seen) == 1:
        steps = sorted({row["step"] for row in seen[0].similarity})
        rows = [[_histogram(f"step {step:.0f}", seen, step) for step in _spaced(steps, _COLUMNS)]]
        what = "during the run"
    elif not axes:
        rows = [[_histogram(run.name, [run]) for run in _spaced(seen, _COLUMNS)]]
        what = f"at the last {_LOGGED} logged steps"
    else:
        places = [keys.index(axis) for axis in axes]
        across = _spaced(levels(groups, places[0]), _COLUMNS)
        down = _spaced(levels(groups, places[1]), _ROWS) if len(axes) == 2 else [None]
        rows = []
        for low in down:
            chosen = {
                value: [run for group in groups if group.values[places[0]] == value for run in group.runs
                        if len(axes) == 1 or group.values[places[1]] == low]
                for value in across
            }  # fmt: skip
            tail = "" if len(axes) == 1 else f", {_named(axes[1], low)}"
            rows.append([_histogram(_named(axes[0], value) + tail, group) for value, group in chosen.items()])
        what = f"at the last {_LOGGED} logged steps, all seeds together"
    known = [[one for one in row if one is not None] for row in rows]
    if not any(known):
        return None
    pictures.similarities([row for row in known if row], path)
    return Picture(
        path.name,
        f"Cosines of positives (blue: two views of an image) and negatives (orange) {what}. Each histogram has area 1.",
    )


def _histogram(title: str, runs: Sequence[Run], step: float | None = None) -> pictures.Histogram | None:
    """Return the histogram of several runs together, at one step or at the last logged steps of each run."""
    rows: list[Row] = []
    for run in runs:
        steps = [step] if step is not None else sorted({row["step"] for row in run.similarity})[-_LOGGED:]
        rows += [row for row in run.similarity if row["step"] in steps]
    lows = sorted({row["low"] for row in rows})
    if not lows:
        return None
    edges = [*lows, max(row["high"] for row in rows)]
    positives, negatives = (
        [sum(row[kind] for row in rows if row["low"] == low) for low in lows] for kind in ("positives", "negatives")
    )
    return pictures.Histogram(title, edges, positives, negatives)


def _spaced(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most ``most`` of the values at equal distances, with the first and the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
