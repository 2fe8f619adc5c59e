"""Store the features of a map's points, to draw the map later: the best run's of a sweep, for the report.

Shapes as in ``maps``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simclr_lightning import files
from simclr_lightning.pictures.maps import embedding_map


def save_points(h_nF: Tensor, labels_n: Tensor | None, class_names: Sequence[str] | None, path: Path) -> Path:
    """Write what ``embedding_map`` draws to an .npz file; its folder is created.

    Args:
        h_nF: features of the images.
        labels_n: their classes, or None.
        class_names: one name for each class, or None.
        path: the file.

    Returns:
        The path.
    """
    arrays = {"h": h_nF.detach().float().cpu().numpy()}
    if labels_n is not None:
        arrays["labels"] = labels_n.cpu().numpy()
    if class_names is not None:
        arrays["class_names"] = np.array(class_names, dtype=np.str_)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as fresh, fresh.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the names for options
    return path


def map_of_points(points: Path, path: Path) -> Path:
    """Draw the points of a file that `save_points` wrote, by t-SNE; return the path of the PNG file.

    Raises:
        ValueError: the file is damaged, or as by ``embedding_map``.
        OSError: the file cannot be read.
    """
    try:
        with np.load(points, allow_pickle=False) as arrays:
            h = torch.from_numpy(arrays["h"])
            labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
            names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
    except OSError:
        raise
    except Exception as error:  # numpy and zipfile raise errors of almost any class
        raise ValueError(f"{points} is damaged: {type(error).__name__}") from error
    return embedding_map(h, labels, names, path)
