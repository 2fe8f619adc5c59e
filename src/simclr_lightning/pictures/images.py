"""Draw images: view pairs, and nearest neighbors.

Shapes: m = queries, k = neighbors, n = images, S, H, W = sides in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simclr_lightning.pictures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def view_pairs(x_a: Tensor, x_b: Tensor, path: Path, *, count: int = 8) -> Path:
    """Draw the two views of the first ``count`` images, one column for each image.

    Args:
        x_a: first views (n, 3, S, S), float in [0, 1] or uint8.
        x_b: second views, in the same shape and order.
        path: the PNG file to write; its folder is created.
        count: the maximum number of columns.

    Returns:
        The path.
    """
    count = min(count, len(x_a))
    assert count >= 1, "a picture of view pairs needs at least one pair"
    figure, axes = _image_grid(2, count, height_over_width=x_a.shape[-2] / x_a.shape[-1], left=0.35, bottom=0.1)
    for row, (name, views) in enumerate((("first view", x_a), ("second view", x_b))):
        for column in range(count):
            _show(axes[row][column], views[column])
        axes[row][0].set_ylabel(name, fontsize=9)
    title = "Two views of each image; training makes their features similar"
    axes[0][0].set_title(title, fontsize=10, loc="left")
    return canvas.save(figure, path)


def neighbours(
    queries: Tensor,
    neighbours: Tensor,
    path: Path,
    *,
    correct: Tensor | None = None,
    query_names: Sequence[str] | None = None,
) -> Path:
    """Draw each query at the left and its nearest images next to it, nearest first.

    Args:
        queries: (m, 3, H, W), float in [0, 1] or uint8.
        neighbours: (m, k, 3, H, W).
        path: the PNG file to write; its folder is created.
        correct: (m, k) bool, whether a neighbor has the class of its query; None without labels.
        query_names: text at the left of each query, such as its class.

    Returns:
        The path.
    """
    m, k = neighbours.shape[:2]
    names = [canvas.plain_name(name) for name in query_names or ()]
    figure, axes = _image_grid(
        m, k + 1, height_over_width=queries.shape[-2] / queries.shape[-1],
        left=0.25 + 0.07 * max((len(name) for name in names), default=0),
        bottom=0.1 if correct is None else 0.4, first_gap=0.25,
    )  # fmt: skip
    for row in range(m):
        _show(axes[row][0], queries[row])
        if names:
            axes[row][0].set_ylabel(names[row], fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
        for column in range(k):
            verdict = None if correct is None else bool(correct[row, column])
            _show(axes[row][column + 1], neighbours[row, column], verdict)
    axes[0][0].set_title("query", fontsize=10)
    axes[0][1].set_title("most similar images, nearest first", fontsize=10, loc="left")
    if correct is not None:
        share = correct.double().mean().item()
        key = f"✓ blue: same class as the query    ✗ orange: another class    ({share:.0%} same class)"
        figure.text(axes[-1][0].get_position().x0, 0.14 / figure.get_figheight(), key, fontsize=9)
    return canvas.save(figure, path)


def image_rows(
    rows: Sequence[Sequence[tuple[Tensor, str]]],
    path: Path,
    *,
    titles: tuple[str, str],
    names: Sequence[str] | None = None,
) -> Path:
    """Draw rows of images of one size, each with a short caption in its corner; a gap follows the first column.

    Args:
        rows: for each row, at least one pair (image (3, H, W), float in [0, 1] or uint8; caption), from left to right.
        path: the PNG file to write; its folder is created.
        titles: above the first column, and above the other columns.
        names: text at the left of each row.

    Returns:
        The path.
    """
    left = [canvas.plain_name(name) for name in names or ()]
    first = rows[0][0][0]
    figure, axes = _image_grid(
        len(rows), max(2, *(len(row) for row in rows)), height_over_width=first.shape[-2] / first.shape[-1],
        left=0.25 + 0.07 * max((len(name) for name in left), default=0), bottom=0.1, first_gap=0.25,
    )  # fmt: skip
    for number, (row, places) in enumerate(zip(rows, axes, strict=True)):
        for (image, caption), place in zip(row, places, strict=False):
            _show(place, image)
            if caption:
                _caption(place, caption, "#333333")
        for place in places[len(row) :]:
            place.set_axis_off()
        if left:
            places[0].set_ylabel(left[number], fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    axes[0][0].set_title(titles[0], fontsize=10)
    axes[0][1].set_title(titles[1], fontsize=10, loc="left")
    return canvas.save(figure, path)


def _image_grid(
    rows: int,
    columns: int,
    *,
    height_over_width: float,
    left: float,
    bottom: float,
    first_gap: float = 0.08,
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with rows x columns axes, ``first_gap`` after the first column; lengths in inches."""
    cell, gap, top, right = 0.95, 0.08, 0.35, 0.1
    tall = cell * height_over_width
    starts = [left] + [left + first_gap - gap + column * (cell + gap) for column in range(1, columns)]
    # The titles and the legend need this width even if there are few columns.
    width = max(starts[-1] + cell + right, left + 5.2)
    height = top + rows * (tall + gap) - gap + bottom
    figure = canvas.figure(width, height, layout=None)
    axes = []
    for row in range(rows):
        y = height - top - tall - row * (tall + gap)
        axes.append([figure.add_axes((x / width, y / height, cell / width, tall / height)) for x in starts])
    return figure, axes


def _show(axes: Axes, image_3HW: Tensor, verdict: bool | None = None) -> None:
    """Draw one image without ticks; a verdict adds a colored frame and a sign in the corner."""
    image = image_3HW.detach().cpu()
    image = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().byte()
    # Small images are drawn pixel by pixel; large images are scaled down with antialiasing.
    smoothing = "nearest" if image.shape[-1] < 100 else "antialiased"
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation=smoothing)
    axes.set_xticks([])
    axes.set_yticks([])
    color = "#BBBBBB" if verdict is None else (canvas.RIGHT if verdict else canvas.WRONG)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=0.8 if verdict is None else 2.5)
    if verdict is not None:
        _caption(axes, "✓" if verdict else "✗", color)


def _caption(axes: Axes, text: str, color: str) -> None:
    axes.text(
        0.97, 0.04, text, transform=axes.transAxes, ha="right", va="bottom", color="white", fontsize=8,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": color, "linewidth": 0},
    )  # fmt: skip
