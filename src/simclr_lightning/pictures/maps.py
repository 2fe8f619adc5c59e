"""A map of the embedding: images with similar features lie close together.

Shapes: n = points, F = features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

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
    """Draw the features (n, F) as points in the plane, images with similar features close together.

    Args:
        h_nF: features of the images.
        labels_n: their classes, which colour the points; None draws them grey.
        class_names: the names for the legend; None numbers the classes.
        path: the PNG to write; its folder is made.
        method: "tsne" keeps neighbourhoods (a seeded sample of 2,000 points at most); "umap" too, and more of the
            distances between groups (20,000 at most; the extra ``umap``); "pca" is the plane of largest variance
            (20,000 at most).

    Raises:
        ValueError: there are no features, some are not finite, or UMAP is asked for and not installed.
    """
    if h_nF.ndim != 2 or h_nF.numel() == 0 or not torch.isfinite(h_nF).all():
        raise ValueError(f"a map needs a table of finite features, got {tuple(h_nF.shape)} with NaN or infinity")
    h_nF, labels_n = _sample(h_nF, labels_n, _MOST_POINTS[method])
    # A handful of images, or images all in one direction (a collapsed encoder), have no neighbourhoods.
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
            # Ten colours are told apart; each further ten have another shape, every other ten a rim.
            facecolors=canvas.CLASS_COLOURS[place % len(canvas.CLASS_COLOURS)],
            marker=_MARKERS[place // len(canvas.CLASS_COLOURS) % len(_MARKERS)],
            edgecolors="black", linewidths=0.5 * (place // len(canvas.CLASS_COLOURS) % 2),
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


def _umap(h_nF: Tensor) -> Tensor:
    """UMAP on cosine distances, seeded (and so on one thread)."""
    try:
        from umap import UMAP
    except ImportError:
        raise ValueError("a UMAP map needs a package: pip install 'simclr-lightning[umap]'") from None
    search = UMAP(n_neighbors=15, min_dist=0.1, metric="cosine", random_state=0, n_jobs=1)
    return torch.as_tensor(search.fit_transform(h_nF.numpy()))


_PLANES: dict[str, Callable[[Tensor], Tensor]] = {
    "tsne": _tsne,
    "umap": _umap,
    "pca": lambda h_nF: _principal_axes(h_nF, 2),
}
