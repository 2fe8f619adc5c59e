"""The images of the benchmarks: photographs of scikit-image as pixels and JPEGs, and tiny colored squares."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor


def photographs(count: int) -> list[Image.Image]:
    """Return ``count`` photographs of 500 x 375 pixels, five different ones in turn."""
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.retina()]
    return [Image.fromarray(sources[i % 5]).resize((500, 375), Image.Resampling.BICUBIC) for i in range(count)]


def jpegs(count: int) -> list[Tensor]:
    """Return the photographs as JPEGs at quality 90, each (bytes,) uint8."""
    out = []
    for picture in photographs(count):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        out.append(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    return out


def jpeg_folder(folder: Path, count: int) -> Path:
    """Write ``count`` JPEG files into a new folder and return it; 16 different files repeat."""
    folder.mkdir()
    few = [jpeg.numpy().tobytes() for jpeg in jpegs(16)]
    for index in range(count):
        (folder / f"{index:05d}.jpg").write_bytes(few[index % len(few)])
    return folder


def patches(count: int) -> list[Tensor]:
    """Return ``count`` random patches of the photographs, each (3, 32, 32) uint8."""
    wide = [torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in photographs(5)]
    corner = torch.randint(0, 343, (count, 2), generator=torch.Generator().manual_seed(0)).tolist()
    return [wide[i % 5][:, top : top + 32, left : left + 32].contiguous() for i, (top, left) in enumerate(corner)]


def squares(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy red, green and blue squares, (count, 12, 12, 3) uint8, and their labels 0 to 2, (count,) int64."""
    labels = np.arange(count) % 3
    noise = np.random.default_rng(0).integers(0, 80, (count, 12, 12, 3))
    return (noise + 140 * np.eye(3, dtype=np.int64)[labels][:, None, None]).astype(np.uint8), labels
