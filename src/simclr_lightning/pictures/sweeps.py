"""Draw two settings of a sweep: heat maps of a score, and histograms of the cosines of positives and negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simclr_lightning.pictures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CELLS_WRITTEN = 100


@dataclass(frozen=True)
class HeatMap:
    """One score over the values of two settings.

    Attributes:
        title: the score with its unit.
        cells: (x, y) -> (mean, standard deviation or None); combinations without a run are missing.
        best: the (x, y) to mark.
    """

    title: str
    cells: Mapping[tuple[Any, Any], tuple[float, float | None]]
    best: tuple[Any, Any] | None = None


def heat_maps(
    maps: Sequence[HeatMap], path: Path, *, x: Sequence[Any], y: Sequence[Any], names: tuple[str, str]
) -> Path:
    """Draw one heat map for each score, with mean and spread in the cells and a frame and a star at the best cell.

    Args:
        maps: one for each panel.
        path: the PNG file to write; its folder is created.
        x: values of the first setting, from left to right.
        y: values of the second setting, from bottom to top.
        names: of the two settings.

    Returns:
        The path.

    Raises:
        ValueError: ``maps`` is empty.
    """
    if not maps:
        raise ValueError("there is nothing to draw: no setting has a score")
    width, height = max(3.6, 0.9 * len(x) + 1.6), max(2.8, 0.62 * len(y) + 1.4)
    figure = canvas.figure(min(width, 14) * len(maps), min(height, 14))
    for panel, one in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        _heat_map(panel, one, x, y, written=len(x) * len(y) <= _MOST_CELLS_WRITTEN)
        panel.set_title(one.title, fontsize=10)
        panel.set_xlabel(canvas.plain_name(names[0], 40), fontsize=9)
        panel.set_ylabel(canvas.plain_name(names[1], 40), fontsize=9)
        panel.set_xticks(range(len(x)), [canvas.plain_name(canvas.short(value)) for value in x], fontsize=8)
        panel.set_yticks(range(len(y)), [canvas.plain_name(canvas.short(value)) for value in y], fontsize=8)
    return canvas.save(figure, path)


def _heat_map(panel: Axes, one: HeatMap, x: Sequence[Any], y: Sequence[Any], *, written: bool) -> None:
    table = [[one.cells.get((a, b), (float("nan"), None))[0] for a in x] for b in y]
    low, high = min(mean for mean, _ in one.cells.values()), max(mean for mean, _ in one.cells.values())
    if high - low < 1e-9:  # all means are equal: widen the range, so that the color bar is valid
        low, high = low - 1, high + 1
    image = panel.imshow(table, origin="lower", aspect="auto", cmap="viridis", vmin=low, vmax=high)
    panel.figure.colorbar(image, ax=panel, shrink=0.9).ax.tick_params(labelsize=8)
    for (a, b), (mean, deviation) in one.cells.items():
        at = (list(x).index(a), list(y).index(b))
        star = "★ " if (a, b) == one.best else ""
        text = f"{star}{mean:.1f}" + ("" if deviation is None else f"\n± {deviation:.1f}")
        dark = mean < low + 0.6 * (high - low)
        if written or star:
            panel.text(*at, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
        if star:
            panel.add_patch(_frame(at))


def _frame(at: tuple[int, int]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((at[0] - 0.48, at[1] - 0.47), 0.96, 0.94, fill=False, edgecolor=canvas.WRONG, linewidth=3)


@dataclass(frozen=True)
class Histogram:
    """Counts of the cosines of positives and of negatives, in bins of equal width.

    Attributes:
        title: the setting or the step.
        edges: of the bins, (bins + 1).
        positives: counts, (bins).
        negatives: counts, (bins).
    """

    title: str
    edges: Sequence[float]
    positives: Sequence[float]
    negatives: Sequence[float]


def similarities(rows: Sequence[Sequence[Histogram]], path: Path) -> Path:
    """Draw histograms of cosines in rows and columns, each with area 1, so that batches of any size are comparable.

    Args:
        rows: histograms of each row, from left to right.
        path: the PNG file to write; its folder is created.

    Returns:
        The path.

    Raises:
        ValueError: there are no histograms.
    """
    if not any(rows):
        raise ValueError("there is nothing to draw: there are no histograms of cosines")
    columns = max(len(row) for row in rows)
    figure = canvas.figure(3.0 * columns, 2.3 * len(rows) + 0.5)
    panels = figure.subplots(len(rows), columns, squeeze=False, sharex=True)
    for row, shown in zip(panels, rows, strict=True):
        for panel, one in zip(row, shown, strict=False):
            _histogram(panel, one)
        for panel in row[len(shown) :]:
            panel.set_axis_off()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return canvas.save(figure, path)


def _histogram(panel: Axes, one: Histogram) -> None:
    kinds = (("negatives", one.negatives, canvas.WRONG), ("positives", one.positives, canvas.RIGHT))
    for name, counts, color in kinds:
        widths = [high - low for low, high in zip(one.edges[:-1], one.edges[1:], strict=True)]
        total = sum(counts) or 1
        density = [count / total / width for count, width in zip(counts, widths, strict=True)]
        panel.stairs(density, one.edges, fill=True, color=color, alpha=0.45, label=name)
        panel.stairs(density, one.edges, color=color, linewidth=1)
    panel.set_title(canvas.plain_name(one.title, 60), fontsize=9)
    panel.set_xlim(-1, 1)
    panel.set_yticks([])
    panel.set_xlabel("cosine", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right", "left"]].set_visible(False)
