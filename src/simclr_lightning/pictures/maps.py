"""Draw a map of features: images with similar features are close together.

Shapes: n = points, F = features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from simclr_lightning.extras import require
from simclr_lightning.pictures import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vP"
_MOST_POINTS = {"tsne": 2000, "umap": 20_000, "pca": 20_000}
_FEWEST_POINTS = {"tsne": 4, "umap": 16, "pca": 1}
_MOST_IN_LEGEND = 50


def embedding_map(
    h_nF: Tensor,
    labels_n: Tensor | None,
    class_names: Sequence[str] | None,
    path: Path,
    *,
    method: Literal["tsne", "pca", "umap"] = "tsne",
) -> Path:
    """Draw features as points in the plane, images with similar features close together.

    Args:
        h_nF: features of the images.
        labels_n: their classes, which color the points; None draws all points gray.
        class_names: names for the legend; None shows the numbers of the classes.
        path: the PNG file to write; its folder is created.
        method: "tsne" keeps neighborhoods (at most 2,000 points, a seeded sample). "umap" also keeps more of the
            distances between groups (at most 20,000 points; extra ``umap``). "pca" is the plane of largest variance
            (at most 20,000 points). Few points, or points in one direction, are drawn by "pca".

    Returns:
        The path.

    Raises:
        ValueError: there are no features, some are not finite, or "umap" is chosen and umap-learn is not installed.
    """
    if h_nF.ndim != 2 or h_nF.numel() == 0 or not torch.isfinite(h_nF).all():
        raise ValueError(
            f"a map needs finite features (n, F): got shape {tuple(h_nF.shape)}, empty or with NaN or infinity"
        )
    h_nF, labels_n = _sample(h_nF, labels_n, _MOST_POINTS[method])
    # Very few images, or images all in one direction (a collapsed encoder), have no neighborhoods.
    spread = torch.nn.functional.normalize(h_nF, dim=1).std(0, correction=0).max()
    if len(h_nF) < _FEWEST_POINTS[method] or not bool(spread > 1e-5):
        method = "pca"
    xy_n2 = _PLANES[method](h_nF)
    figure = canvas.figure(6.4, 6.0) if labels_n is None else canvas.figure(8.2, 6.0)
    axes = figure.subplots()
    size = min(40.0, max(6.0, 24000 / len(xy_n2)))
    if labels_n is None:
        x, y = xy_n2.T.numpy()
        axes.scatter(x, y, s=size, color=canvas.PLAIN, alpha=0.6, linewidths=0)
    else:
        _scatter_classes(axes, xy_n2, labels_n, class_names, size)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_color("#BBBBBB")
    how = {"tsne": "t-SNE", "umap": "UMAP", "pca": "two principal components"}[method]
    axes.set_title(f"Map of the representation: {len(xy_n2):,} images, {how}", fontsize=10)
    return canvas.save(figure, path)


def _scatter_classes(
    axes: Axes, xy_n2: Tensor, labels_n: Tensor, class_names: Sequence[str] | None, size: float
) -> None:
    present = sorted(set(labels_n.tolist()))
    for place, label in enumerate(present):
        x, y = xy_n2[labels_n == label].T.numpy()
        name = f"class {label}" if class_names is None else canvas.plain_name(class_names[label])
        axes.scatter(
            x, y, s=size, alpha=0.8, label=name if place < _MOST_IN_LEGEND else None,
            # Ten classes differ by color, the next ten also by shape; every second ten have an edge.
            facecolors=canvas.CLASS_COLORS[place % len(canvas.CLASS_COLORS)],
            marker=_MARKERS[place // len(canvas.CLASS_COLORS) % len(_MARKERS)],
            edgecolors="black", linewidths=0.5 * (place // len(canvas.CLASS_COLORS) % 2),
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
    centered = (h_nF - h_nF.mean(0)).double()
    _, axes = torch.linalg.eigh(centered.T @ centered)
    projected = (centered @ axes.flip(1)[:, :count]).float()
    return torch.nn.functional.pad(projected, (0, max(0, 2 - projected.shape[1])))


def _tsne(h_nF: Tensor) -> Tensor:
    """Return t-SNE coordinates (n, 2): unit rows reduced to 50 principal components, seeded, started from PCA."""
    from sklearn.manifold import TSNE

    unit = torch.nn.functional.normalize(h_nF, dim=1)
    reduced = _principal_axes(unit, 50).numpy()
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    # An angle of 0.7 instead of 0.5 takes a third less time, and 500 steps instead of 1,000 half of it, without a
    # visible difference: of 1,800 photographs, 69.0 % of the 15 nearest neighbors stay near, of 69.2 %.
    search = TSNE(perplexity=perplexity, init="pca", angle=0.7, max_iter=500, random_state=0)
    return torch.as_tensor(search.fit_transform(reduced))


def _umap(h_nF: Tensor) -> Tensor:
    """Return UMAP coordinates (n, 2) by cosine distances, seeded, which limits UMAP to one thread."""
    require("umap", "a map by UMAP")
    from umap import UMAP

    search = UMAP(n_neighbors=15, min_dist=0.1, metric="cosine", random_state=0, n_jobs=1)
    return torch.as_tensor(search.fit_transform(h_nF.numpy()))


_PLANES: dict[str, Callable[[Tensor], Tensor]] = {
    "tsne": _tsne,
    "umap": _umap,
    "pca": lambda h_nF: _principal_axes(h_nF, 2),
}
