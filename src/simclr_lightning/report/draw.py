"""The pictures of a report, from runs and settings: what is drawn; how is `simclr_lightning.pictures`'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simclr_lightning import pictures
from simclr_lightning.report import figures
from simclr_lightning.report.blocks import Picture
from simclr_lightning.report.content import levels
from simclr_lightning.report.figures import Figure, shown
from simclr_lightning.report.grouping import Setting, Spread
from simclr_lightning.report.runs import Run
from simclr_lightning.run_folder import Row

_FEW_EPOCHS = 5  # below, curves are drawn over steps
_COLUMNS, _ROWS = 4, 4  # of histograms, at most
_LOOKS = 3  # the last ones of each run, which a histogram adds up: one has the positives of one batch alone
# By what metrics.csv calls them, with "_step" for the means of a few steps.
_CURVES = {
    "loss": "train/loss",
    "contrastive accuracy": "train/contrastive_accuracy",
    "contrastive entropy, nats": "train/contrastive_entropy",
}
_ONLINE = {"kNN on held-out train": "online/knn_top1", "NT-Xent on held-out train": "online/held_out_loss"}

Draw = Callable[[Path], Picture | None]


def all_pictures(runs: list[Run], groups: list[Setting], keys: list[str], axes: list[str]) -> dict[str, Draw]:
    """What to draw, by file name; each returns None where there is nothing to show."""
    finished = [run for run in runs if run.finished]
    return {
        "score.png": lambda path: _score(finished, groups, keys, axes, path),
        "curves.png": lambda path: _curves(runs, keys, axes, path),
        "hardness.png": lambda path: _hardness(groups, keys, axes, path),
        "similarity.png": lambda path: _similarity(runs, groups, keys, axes, path),
    }


def _score(finished: list[Run], groups: list[Setting], keys: list[str], axes: list[str], path: Path) -> Picture | None:
    found = [figure for figure in figures.scores(finished) if figure.scale == 100]
    if not axes or not found or len(groups) < 2:
        return None
    if len(axes) == 1:
        pictures.trends({figure.name: _line(figure, groups, keys, axes[0]) for figure in found}, path, x=axes[0])
        return Picture(path.name, f"Scores over {axes[0]}: means, with one standard deviation over the runs.")
    x, y = (levels(groups, keys.index(axis)) for axis in axes)
    maps = [_heat_map(figure, groups, keys, axes) for figure in found]
    pictures.heat_maps(maps, path, x=x, y=y, names=(axes[0], axes[1]))
    others = [key for key in keys if key not in axes]
    best = f" Each cell is the best over {', '.join(others)}." if others else ""
    return Picture(
        path.name,
        f"Scores over {axes[0]} and {axes[1]}: mean ± standard deviation over seeds; the best cell is framed.{best}",
    )


def _heat_map(figure: Figure, groups: list[Setting], keys: list[str], axes: list[str]) -> pictures.HeatMap:
    cells: dict[tuple[Any, Any], tuple[float, float | None]] = {}
    for group in groups:
        found, place = group.of(figure.read), _place(group, keys, axes)
        if found is not None and (place not in cells or cells[place][0] < found.mean * figure.scale):
            cells[place] = _scaled(figure, found)
    best = max(cells, key=lambda place: cells[place][0])
    return pictures.HeatMap(figure.name, cells, best)


def _place(group: Setting, keys: list[str], axes: Sequence[str]) -> tuple[Any, Any]:
    return group.values[keys.index(axes[0])], group.values[keys.index(axes[1])]


def _scaled(figure: Figure, found: Spread) -> tuple[float, float | None]:
    deviation = None if found.deviation is None else found.deviation * figure.scale
    return found.mean * figure.scale, deviation


def _line(
    figure: Figure, groups: list[Setting], keys: list[str], axis: str
) -> dict[tuple[str, ...], list[tuple[Any, float, float | None]]]:
    """Points over one key, a line for each setting of the others."""
    lines: dict[tuple[str, ...], list[tuple[Any, float, float | None]]] = {}
    place = keys.index(axis)
    for group in groups:
        found = group.of(figure.read)
        if found is not None:
            rest = tuple(_named(key, value) for key, value in zip(keys, group.values, strict=True) if key != axis)
            lines.setdefault(rest, []).append((group.values[place], *_scaled(figure, found)))
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
    return Picture(path.name, f"Training over {x}s: means over seeds. kNN is on the held-out tenth of train.")


def _mean_rows(group: list[Run], columns: Mapping[str, str], x: str) -> list[dict[str, float | None]]:
    """Means over runs of each column, at each place of x that any of them has."""
    found: dict[float, dict[str, list[float]]] = {}
    for row in (row for run in group for row in run.metrics if x in row):
        for name, column in columns.items():
            if column in row:
                found.setdefault(row[x] + (x == "epoch"), {}).setdefault(name, []).append(row[column])
    return [{x: at, **{name: sum(values) / len(values) for name, values in found[at].items()}} for at in sorted(found)]


def _hardness(groups: list[Setting], keys: list[str], axes: list[str], path: Path) -> Picture | None:
    found = figures.known(figures.HARDNESS, [run for group in groups for run in group.runs])
    if not axes or not found:
        return None
    pictures.trends({_folded(figure.name): _line(figure, groups, keys, axes[0]) for figure in found}, path, x=axes[0])
    return Picture(
        path.name,
        "How hard the negatives are at the end of training: the share of the negatives' gradient on the most similar 1 "
        "and 10 % of them (even shares would be 1 and 10 %), the effective number of negatives, and how many of the "
        "hardest are of the image's own class.",
    )


def _folded(name: str) -> str:
    """A long name in two lines, broken near its middle."""
    middle = name.find(" ", len(name) // 2)
    return name if middle < 0 else f"{name[:middle]}\n{name[middle + 1 :]}"


def _similarity(runs: list[Run], groups: list[Setting], keys: list[str], axes: list[str], path: Path) -> Picture | None:
    """Histograms of the last step looked at, side by side over the first key; of one run over its steps."""
    seen = [run for run in runs if run.similarity]
    if not seen:
        return None
    if len(seen) == 1:
        steps = sorted({row["step"] for row in seen[0].similarity})
        rows = [[_histogram(f"step {step:.0f}", seen, step) for step in _spaced(steps, _COLUMNS)]]
        what = "in the course of the run"
    elif not axes:
        rows = [[_histogram(run.name, [run]) for run in _spaced(seen, _COLUMNS)]]
        what = f"at the last {_LOOKS} steps looked at"
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
        what = f"at the last {_LOOKS} steps looked at, all seeds together"
    known = [[one for one in row if one is not None] for row in rows]
    if not any(known):
        return None
    pictures.similarities([row for row in known if row], path)
    return Picture(
        path.name,
        f"Cosines of positives (blue: two views of one image) and of negatives (orange) {what}; each area is 1.",
    )


def _histogram(title: str, runs: Sequence[Run], step: float | None = None) -> pictures.Histogram | None:
    """The counts of some runs together, at one step or the last ones of each."""
    rows: list[Row] = []
    for run in runs:
        steps = [step] if step is not None else sorted({row["step"] for row in run.similarity})[-_LOOKS:]
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
    """At most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
