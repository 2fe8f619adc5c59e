"""Feature cache: RUN/features/*.npy, named after a hash of weights and images, verified by a .sha256 file.

Shapes: n = images, m = images of a part, F = the encoder's feature_dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simclr_lightning import files
from simclr_lightning.run_folder import FEATURES


def folder(run: Path) -> Path:
    """Return the cache's folder for a run's folder, an exported encoder or a file of weights."""
    return (run if run.is_dir() else run.parent) / FEATURES


def read(path: Path, key: str, shape: tuple[int, int], report: Callable[[str], None]) -> Tensor | None:
    """Return h (n, F) float32 from a file, memory-mapped; None if it is missing, damaged or has another key.

    Args:
        path: the file.
        key: identifies the weights, the images and their preprocessing.
        shape: (n, F).
        report: called with a line about a file that exists but cannot be used.
    """
    if not path.is_file():
        return None
    try:
        if _digest_file(path).read_text("ascii").strip() == _digest(path, key):
            h_nF = np.load(path, mmap_mode="c", allow_pickle=False)
            assert h_nF.shape == shape  # the key determines it
            return torch.from_numpy(h_nF)
    except (OSError, UnicodeDecodeError):
        pass
    report(f"{path} is damaged, or belongs to other weights or images; its features are extracted again")
    return None


@contextmanager
def writing(path: Path, key: str, shape: tuple[int, int]) -> Iterator[Callable[[Tensor], None]]:
    """Yield a function that appends a part (m, F) of h to a file; after an error there is no file.

    Args:
        path: the file.
        key: as in `read`.
        shape: (n, F).

    Raises:
        OSError: the folder cannot be written, or later the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as fresh:
        with fresh.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            yield lambda h_mF: _append(file, h_mF)
        files.write_text(_digest_file(path), _digest(fresh, key) + "\n")


def _append(file: BufferedWriter, h_mF: Tensor) -> None:
    file.write(h_mF.float().contiguous().numpy().data)


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digest(path: Path, key: str) -> str:
    """Return the SHA-256 of the key and the file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(key.encode())).hexdigest()
