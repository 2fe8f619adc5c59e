"""Draw the predictions of a classifier by class: the confusion matrix, and a bar for each class.

Shapes: m = images, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from simclr_lightning.pictures.canvas import PLAIN, RIGHT, figure, plain_name, save

_NUMBERED = 20  # up to this number of classes, the percentages are written into the cells
_NAMED = 50  # up to this number of classes, their names are written at the axes
_BARS = 40


def confusion(
    predicted_m: Tensor, labels_m: Tensor, class_names: Sequence[str], path: Path, *, title: str = "a classifier"
) -> Path:
    """Draw the confusion matrix: for each true class (row), the share of its images predicted as each class (column).

    Args:
        predicted_m: predicted classes, int64 from 0.
        labels_m: true classes.
        class_names: C names.
        path: the PNG file to write; its folder is created.
        title: name of the classifier.

    Returns:
        The path.
    """
    C = len(class_names)
    counts = torch.bincount(labels_m * C + predicted_m, minlength=C * C).reshape(C, C).double()
    share_CC = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(10.0, 2.6 + 0.36 * C)
    drawing = figure(side + 1.6, side)
    axes = drawing.subplots()
    drawn = axes.imshow(share_CC.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    drawing.colorbar(drawn, ax=axes, shrink=0.7, label="share of the images in the row")
    if C <= _NUMBERED:
        for row, column in (share_CC >= 0.005).nonzero().tolist():
            value = share_CC[row, column].item()
            color = "white" if value > 0.55 else "black"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=color)
    if C <= _NAMED:
        names = [plain_name(name) for name in class_names]
        axes.set_xticks(range(C), names, rotation=90, fontsize=7)
        axes.set_yticks(range(C), names, fontsize=7)
    right = (predicted_m == labels_m).double().mean().item()
    axes.set_xlabel("predicted" + (", in percent of the row" if C <= _NUMBERED else ""), fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    axes.set_title(f"Confusion matrix of {title}: {right:.1%} correct", fontsize=10)
    return save(drawing, path)


def per_class(
    predicted_m: Tensor, labels_m: Tensor, class_names: Sequence[str], path: Path, *, title: str = "a classifier"
) -> Path:
    """Draw the accuracy of each class as a bar, the best class at the top; of many classes, the best and worst 20.

    Args:
        predicted_m: predicted classes, int64 from 0.
        labels_m: true classes; a class without images has no bar.
        class_names: C names.
        path: the PNG file to write; its folder is created.
        title: name of the classifier.

    Returns:
        The path.
    """
    right = (predicted_m == labels_m).double()
    images_C = torch.bincount(labels_m, minlength=len(class_names))
    share_C = torch.bincount(labels_m, weights=right, minlength=len(class_names)) / images_C
    order = [c for c in share_C.argsort(descending=True, stable=True).tolist() if images_C[c] > 0]
    shown = order if len(order) <= _BARS else [*order[: _BARS // 2], *order[-_BARS // 2 :]]
    drawing = figure(6.4, 1.2 + 0.24 * len(shown))
    axes = drawing.subplots()
    heights = [share_C[c].item() for c in shown]
    axes.barh(range(len(shown)), heights, color=RIGHT, height=0.75)
    for place, (c, value) in enumerate(zip(shown, heights, strict=True)):
        axes.text(
            value + 0.01, place, f"{value:.0%} of {int(images_C[c]):,}", va="center", fontsize=7, color=PLAIN,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
        )  # fmt: skip
    mean = right.mean().item()
    axes.axvline(mean, color=PLAIN, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(shown)), [plain_name(class_names[c]) for c in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1.18)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    some = f", the best and worst {_BARS // 2} of {len(order)} classes" if len(order) > _BARS else ""
    axes.set_title(f"Accuracy of {title}{some}; dashed: all images, {mean:.1%}", fontsize=9, loc="left")
    return save(drawing, path)
