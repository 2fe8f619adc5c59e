"""Curves over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from simclr_lightning.pictures import canvas


def curves(rows: Sequence[Mapping[str, float | None]], path: Path) -> Path:
    """Draw every column of the rows over their "epoch", one panel a column; missing values are left out.

    Args:
        rows: such as {"epoch": 3, "loss": 4.1, "knn": 0.6}; a value that is None or not finite is missing.
        path: the PNG to write; its folder is made.

    Raises:
        ValueError: the rows hold nothing to draw.
    """
    names = [name for name in dict.fromkeys(key for row in rows for key in row) if name != "epoch"]
    points = {name: _points(rows, name) for name in names}
    points = {name: line for name, line in points.items() if line}
    if not points:
        raise ValueError("there is nothing to draw: no row has an epoch and a finite value beside it")
    figure = canvas.figure(4.2 * len(points), 3.2)
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for panel, (name, line) in zip(panels, points.items(), strict=True):
        panel.plot(*zip(*line, strict=True), color=canvas.RIGHT, marker="o", markersize=3, linewidth=1.5)
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel("epoch", fontsize=9)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return canvas.save(figure, path)


def _points(rows: Sequence[Mapping[str, float | None]], name: str) -> list[tuple[float, float]]:
    pairs = ((row.get("epoch"), row.get(name)) for row in rows)
    return [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]
