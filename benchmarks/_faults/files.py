"""Files and folders that cannot be trained on, and those that the wrong commands name."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from _images import squares
from simclr_lightning import export_encoder, resnet


def things(folder: Path) -> None:
    """Write exported/, pictures/, empty/, x.npz/ and the text file named file."""
    export_encoder(resnet(10, 0.125, "cifar"), folder / "exported", card={}, size=12)
    for name in ("pictures", "empty", "x.npz"):
        (folder / name).mkdir(exist_ok=True)
    for number, pixels in enumerate(squares(6)[0]):
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    (folder / "file").write_text("text")


def array_files(folder: Path) -> list[Path]:
    """Write .npz files that are not arrays of images and labels; images.npz must be in the folder."""
    good = (folder / "images.npz").read_bytes()
    pixels, labels = squares(20)
    contents: dict[str, bytes | dict[str, np.ndarray]] = {
        "empty": b"",
        "text": b"hello",
        "cut": good[: len(good) // 2],
        "pickle": pickle.dumps({"train_images": 1}),
        "no key": {"images": pixels},
        "float": {"train_images": pixels / 255.0},
        "shape": {"train_images": pixels[0]},
        "channels": {"train_images": pixels[..., :2]},
        "labels": {"train_images": pixels, "train_labels": labels[:3], "test_images": pixels, "test_labels": labels},
        "one image": {"train_images": pixels[:1]},
        "objects": {"train_images": np.array([{"a": 1}] * 4, dtype=object)},
    }
    made = [folder / "missing.npz"]
    for name, content in contents.items():
        made.append(folder / f"{name}.npz")
        if isinstance(content, bytes):
            made[-1].write_bytes(content)
        else:
            np.savez(made[-1], **content)
    return made


def folders(folder: Path) -> list[Path]:
    """Write image folders that cannot be trained on."""
    buffer = io.BytesIO()
    Image.fromarray(squares(1)[0][0]).save(buffer, "JPEG")
    good = buffer.getvalue()
    bomb = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0) + b"\0\0\0\0"
    contents = {
        "folder-empty": {},
        "folder-one": {"a.jpg": good},
        "folder-text": {f"{i}.txt": b"x" for i in range(9)},
        "folder-zero": {f"{i}.jpg": b"" for i in range(40)},
        "folder-cut": {f"{i}.jpg": good[:60] for i in range(40)},
        "folder-bomb": {f"{i}.png": bomb for i in range(40)},
        "folder-lies": {f"{i}.png": b"GIF89a" for i in range(40)},
        "folder-loop": {},
    }
    for name, inside in contents.items():
        (folder / name).mkdir(exist_ok=True)
        for file, data in inside.items():
            (folder / name / file).write_bytes(data)
    (folder / "folder-loop" / "again").symlink_to(folder / "folder-loop")
    return [folder / name for name in ("folder-missing", *contents, "images.npz")]
