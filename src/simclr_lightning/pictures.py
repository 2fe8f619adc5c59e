"""Tensors -> PNG: view pairs, nearest neighbours, a map of the embedding, curves over the epochs.

Every picture is drawn with Matplotlib's objects on an off-screen canvas: no window, no global state. The
colours (Okabe & Ito's, and Tol's muted set for classes) are told apart by colour-blind readers too; right and
wrong differ by a sign as well.

Shapes: m = queries, k = neighbours, n = points, F = features, S, H, W = sides in pixels.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

# Matplotlib and scikit-learn take a second to import: only those who draw wait for them.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
_RIGHT, _WRONG, _PLAIN = "#0072B2", "#D55E00", "#666666"
_CLASS_COLOURS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677",
    "#AA4499", "#44AA99", "#882255", "#999933", "#888888",
)  # fmt: skip
_MARKERS = "osD^vP"
_TSNE_POINTS, _PCA_POINTS = 2000, 20_000
_MOST_IN_LEGEND = 50


def view_pairs(x_a: Tensor, x_b: Tensor, path: Path, *, count: int = 8) -> Path:
    """Draw the two views of the first `count` images, as the network sees them: one column an image.

    Args:
        x_a: first views (n, 3, S, S), float in [0, 1] or uint8.
        x_b: second views, the same shape and order.
        path: the PNG to write; its folder is made.
        count: columns at most.
    """
    count = min(count, len(x_a))
    assert count >= 1, "a picture of view pairs needs a pair"
    figure, axes = _image_grid(2, count, height_over_width=x_a.shape[-2] / x_a.shape[-1], left=0.35, bottom=0.1)
    for row, (name, views) in enumerate((("first view", x_a), ("second view", x_b))):
        for column in range(count):
            _show(axes[row][column], views[column])
        axes[row][0].set_ylabel(name, fontsize=9)
    title = "Two views of each image: the network learns that they belong together"
    axes[0][0].set_title(title, fontsize=10, loc="left")
    return _save(figure, path)


def neighbours(
    queries: Tensor,
    neighbours: Tensor,
    path: Path,
    *,
    correct: Tensor | None = None,
    query_names: Sequence[str] | None = None,
) -> Path:
    """Draw each query at the left and its nearest images, nearest first, at its right.

    Args:
        queries: (m, 3, H, W), float in [0, 1] or uint8.
        neighbours: (m, k, 3, H, W).
        path: the PNG to write; its folder is made.
        correct: (m, k) bool, whether a neighbour is of the query's class; None where there are no labels.
        query_names: a line at the left of each query, such as its class.
    """
    m, k = neighbours.shape[:2]
    names = [_plain(name) for name in query_names or ()]
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
        key = f"✓ blue: same class as the query    ✗ orange: another class    ({share:.0%} the same)"
        figure.text(axes[-1][0].get_position().x0, 0.14 / figure.get_figheight(), key, fontsize=9)
    return _save(figure, path)


def embedding_map(
    h_nF: Tensor,
    labels_n: Tensor | None,
    class_names: Sequence[str] | None,
    path: Path,
    *,
    method: Literal["tsne", "pca"] = "tsne",
) -> Path:
    """Draw the features (n, F) as points in the plane, images with similar features close together.

    Args:
        h_nF: features of the images.
        labels_n: their classes, which colour the points; None draws them grey.
        class_names: the names for the legend; None numbers the classes.
        path: the PNG to write; its folder is made.
        method: "tsne" keeps neighbourhoods (a seeded sample of 2,000 points at most); "pca" is the plane of
            largest variance (20,000 at most).

    Raises:
        ValueError: there are no features, or some are not finite.
    """
    if h_nF.ndim != 2 or h_nF.numel() == 0 or not torch.isfinite(h_nF).all():
        raise ValueError(f"a map needs a table of finite features, got {tuple(h_nF.shape)} with NaN or infinity")
    h_nF, labels_n = _sample(h_nF, labels_n, _TSNE_POINTS if method == "tsne" else _PCA_POINTS)
    # A handful of images, or images all in one direction (a collapsed encoder), have no neighbourhoods.
    spread = torch.nn.functional.normalize(h_nF, dim=1).std(0, correction=0).max()
    tsne = method == "tsne" and len(h_nF) > 3 and bool(spread > 1e-5)
    xy_n2 = _tsne(h_nF) if tsne else _principal_axes(h_nF, 2)
    figure = _figure(6.4, 6.0) if labels_n is None else _figure(8.2, 6.0)
    axes = figure.subplots()
    size = min(40.0, max(6.0, 24000 / len(xy_n2)))
    if labels_n is None:
        x, y = xy_n2.T.numpy()
        axes.scatter(x, y, s=size, color=_PLAIN, alpha=0.6, linewidths=0)
    else:
        _scatter_classes(axes, xy_n2, labels_n, class_names, size)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#BBBBBB")
    how = "t-SNE" if tsne else "two principal components"
    axes.set_title(f"Map of the representation: {len(xy_n2):,} images, {how}", fontsize=10)
    return _save(figure, path)


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
    figure = _figure(4.2 * len(points), 3.2)
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for panel, (name, line) in zip(panels, points.items(), strict=True):
        panel.plot(*zip(*line, strict=True), color=_RIGHT, marker="o", markersize=3, linewidth=1.5)
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel("epoch", fontsize=9)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return _save(figure, path)


def _image_grid(
    rows: int,
    columns: int,
    *,
    height_over_width: float,
    left: float,
    bottom: float,
    first_gap: float = 0.08,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with places for rows x columns images, `first_gap` after column 0; lengths in inches."""
    cell, gap, top, right = 0.95, 0.08, 0.35, 0.1
    tall = cell * height_over_width
    starts = [left] + [left + first_gap - gap + column * (cell + gap) for column in range(1, columns)]
    # Titles and the key need some width even over few columns.
    width = max(starts[-1] + cell + right, left + 5.2)
    height = top + rows * (tall + gap) - gap + bottom
    figure = _figure(width, height, layout=None)
    axes = []
    for row in range(rows):
        y = height - top - tall - row * (tall + gap)
        axes.append([figure.add_axes((x / width, y / height, cell / width, tall / height)) for x in starts])
    return figure, axes


def _figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    """Write beside the target and rename, so that a reader never meets half a picture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with warnings.catch_warnings():
            # Letters for which no font is installed are drawn as boxes: no reason to stop or to talk.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(unfinished, format="png", dpi=_DPI)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _show(axes: Axes, image_3HW: Tensor, verdict: bool | None = None) -> None:
    """One image without ticks; a verdict frames it and puts a sign into its corner."""
    image = image_3HW.detach().cpu()
    image = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().byte()
    # Small images are shown as they are, pixel by pixel; large ones are reduced smoothly.
    smoothing = "nearest" if image.shape[-1] < 100 else "antialiased"
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation=smoothing)
    axes.set_xticks([])
    axes.set_yticks([])
    colour = "#BBBBBB" if verdict is None else (_RIGHT if verdict else _WRONG)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=0.8 if verdict is None else 2.5)
    if verdict is not None:
        axes.text(
            0.97, 0.04, "✓" if verdict else "✗", transform=axes.transAxes, ha="right", va="bottom",
            color="white", fontsize=8,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "linewidth": 0},
        )  # fmt: skip


def _scatter_classes(
    axes: Axes, xy_n2: Tensor, labels_n: Tensor, class_names: Sequence[str] | None, size: float
) -> None:
    present = sorted(set(labels_n.tolist()))
    for place, label in enumerate(present):
        x, y = xy_n2[labels_n == label].T.numpy()
        name = f"class {label}" if class_names is None else _plain(class_names[label])
        axes.scatter(
            x, y, s=size, alpha=0.8, label=name if place < _MOST_IN_LEGEND else None,
            # Ten colours are told apart; each further ten have another shape, every other ten a rim.
            facecolors=_CLASS_COLOURS[place % len(_CLASS_COLOURS)],
            marker=_MARKERS[place // len(_CLASS_COLOURS) % len(_MARKERS)],
            edgecolors="black", linewidths=0.5 * (place // len(_CLASS_COLOURS) % 2),
        )  # fmt: skip
    hidden = len(present) - _MOST_IN_LEGEND
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, markerscale=1.6,
        ncols=math.ceil(min(len(present), _MOST_IN_LEGEND) / 25),
        title=f"the first {_MOST_IN_LEGEND} classes of {len(present)}" if hidden > 0 else None,
        title_fontsize=8,
    )  # fmt: skip


def _sample(h_nF: Tensor, labels_n: Tensor | None, most: int) -> tuple[Tensor, Tensor | None]:
    h_nF = h_nF.detach().float().cpu()
    labels_n = None if labels_n is None else labels_n.cpu()
    if len(h_nF) <= most:
        return h_nF, labels_n
    chosen = torch.randperm(len(h_nF), generator=torch.Generator().manual_seed(0))[:most].sort().values
    return h_nF[chosen], None if labels_n is None else labels_n[chosen]


def _principal_axes(h_nF: Tensor, count: int) -> Tensor:
    centred = (h_nF - h_nF.mean(0)).double()
    _, axes = torch.linalg.eigh(centred.T @ centred)
    projected = (centred @ axes.flip(1)[:, :count]).float()
    return torch.nn.functional.pad(projected, (0, max(0, 2 - projected.shape[1])))


def _tsne(h_nF: Tensor) -> Tensor:
    """t-SNE on cosine distances: unit rows reduced to 50 principal components, seeded, PCA start."""
    from sklearn.manifold import TSNE

    unit = torch.nn.functional.normalize(h_nF, dim=1)
    reduced = _principal_axes(unit, 50).numpy()
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    # An angle of 0.7 is coarser than the default's 0.5 where nobody sees it, and faster by a third.
    search = TSNE(perplexity=perplexity, init="pca", angle=0.7, random_state=0)
    return torch.as_tensor(search.fit_transform(reduced))


def _plain(name: str, most: int = 22) -> str:
    """A name from a folder as text to draw: short, printable, and without a meaning to Matplotlib."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    # "$" would begin a formula, and a leading "_" would leave the class out of the legend.
    return f"{' ' if name.startswith('_') else ''}{name}".replace("$", r"\$")


def _points(rows: Sequence[Mapping[str, float | None]], name: str) -> list[tuple[float, float]]:
    pairs = ((row.get("epoch"), row.get(name)) for row in rows)
    return [(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(y)]
