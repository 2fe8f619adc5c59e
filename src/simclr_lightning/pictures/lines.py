"""Draw curves over epochs or steps, and trends over a setting with their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simclr_lightning.pictures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")
_MOST_LINES, _LEGEND_COLUMNS = 24, 4  # limits of a legend


def curves(
    runs: Mapping[tuple[str, ...], Sequence[Mapping[str, float | None]]], path: Path, *, x: str = "epoch"
) -> Path:
    """Draw every column of the rows over the column ``x``, one panel for each column.

    Args:
        runs: name of each line -> its rows, such as {"epoch": 3, "loss": 4.1, "kNN": 0.6}. Lines with the same first
            part of the name have one color, and different dashes. Values that are None or not finite are left out.
        path: the PNG file to write; its folder is created.
        x: the column on the horizontal axis.

    Returns:
        The path.

    Raises:
        ValueError: no row has ``x`` and another finite value.
    """
    from matplotlib.ticker import MaxNLocator

    names = [name for name in dict.fromkeys(key for rows in runs.values() for row in rows for key in row) if name != x]
    lines = {name: {key: line for key, rows in runs.items() if (line := _points(rows, x, name))} for name in names}
    lines = {name: found for name, found in lines.items() if found}
    if not lines:
        raise ValueError(f"there is nothing to draw: no row has {x} and another finite value")
    styles = _styles(list(runs))
    figure, panels = _panels(len(lines), width=4.2, names=list(runs))
    for panel, (name, found) in zip(panels, lines.items(), strict=True):
        for key, line in found.items():
            panel.plot(*zip(*line, strict=True), marker="o", markersize=3, linewidth=1.5, **styles[key])
        _dress(panel, name.replace("_", " "), x)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, panels, runs)
    return canvas.save(figure, path)


def trends(
    panels: Mapping[str, Mapping[tuple[str, ...], Sequence[tuple[Any, float, float | None]]]], path: Path, *, x: str
) -> Path:
    """Draw means with error bars over the values of a setting, one panel for each score.

    Args:
        panels: title of each panel -> name of each line -> its points (value of the setting, mean, standard deviation
            or None), in order.
        path: the PNG file to write; its folder is created.
        x: name of the setting. Its values are drawn at equal distances.

    Returns:
        The path.

    Raises:
        ValueError: there are no panels.
    """
    if not panels:
        raise ValueError("there is nothing to draw: no setting has a score")
    names = list(dict.fromkeys(key for lines in panels.values() for key in lines))
    values = sorted({point[0] for lines in panels.values() for line in lines.values() for point in line}, key=_order)
    place = {value: i for i, value in enumerate(values)}
    styles = _styles(names)
    figure, axes = _panels(len(panels), width=max(4.2, 0.5 * len(values)), names=list(names))
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        for key, line in lines.items():
            at, means = [place[value] for value, _, _ in line], [mean for _, mean, _ in line]
            bars = [deviation or 0.0 for _, _, deviation in line]
            panel.errorbar(at, means, yerr=bars, marker="o", markersize=4, capsize=3, linewidth=1.5, **styles[key])
        _dress(panel, title, x)
        panel.set_xticks(range(len(values)), [canvas.plain_name(canvas.short(value)) for value in values])
        if len(values) > 8:
            panel.tick_params(axis="x", rotation=60)
    _legend(figure, axes, names)
    return canvas.save(figure, path)


def _styles(names: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], dict[str, Any]]:
    firsts = list(dict.fromkeys(name[:1] for name in names))
    rests = list(dict.fromkeys(name[1:] for name in names))
    colors = canvas.shades(len(firsts))
    return {
        name: {
            "color": colors[firsts.index(name[:1])],
            "linestyle": _DASHES[rests.index(name[1:]) % len(_DASHES)],
            "label": _label(name) or None,
        }
        for name in names
    }


def _panels(count: int, *, width: float, names: Sequence[tuple[str, ...]]) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels, at most three in a row so that the text stays readable."""
    columns = min(count, 2 if count in (2, 4) else 3)
    rows = math.ceil(count / columns)
    entries = _legend_columns(names, width * columns)
    legend = 0.28 * math.ceil(min(len(names), _MOST_LINES) / entries) if len(names) > 1 else 0
    figure = canvas.figure(width * columns, 3.1 * rows + 0.1 + legend)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels[:count]


def _legend_columns(names: Any, inches: float) -> int:
    """Return how many entries of a legend fit into one row."""
    longest = max((len(_label(name)) for name in names), default=0)
    return max(1, min(_LEGEND_COLUMNS, len(names), int(inches / (0.55 + 0.075 * longest))))


def _label(name: tuple[str, ...]) -> str:
    return canvas.plain_name(", ".join(name), 48)


def _legend(figure: Any, panels: Any, names: Any) -> None:
    if len(names) < 2:
        return
    known: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    shown = dict(list(known.items())[:_MOST_LINES])
    figure.legend(
        shown.values(),
        shown.keys(),
        loc="outside lower center",
        ncols=_legend_columns(names, figure.get_figwidth()),
        fontsize=8,
        frameon=False,
    )


def _dress(panel: Axes, title: str, x: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(canvas.plain_name(x, 40), fontsize=9)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def _order(value: Any) -> tuple[bool, Any]:
    return (False, value) if isinstance(value, int | float) else (True, str(value))


def _points(rows: Sequence[Mapping[str, float | None]], x: str, name: str) -> list[tuple[float, float]]:
    pairs = ((row.get(x), row.get(name)) for row in rows)
    return [(at, y) for at, y in pairs if at is not None and y is not None and math.isfinite(y)]
