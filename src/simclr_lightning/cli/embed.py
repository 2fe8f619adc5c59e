"""Run ``simclr embed RUN IMAGES OUT``: write h of every image in a folder, with its file name."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simclr_lightning import app, files, pictures
from simclr_lightning.app import errors, runs
from simclr_lightning.app.errors import UserError
from simclr_lightning.cli.parser import Parser, trusting
from simclr_lightning.extras import require

if TYPE_CHECKING:
    from torch import Tensor


def main(argv: Sequence[str]) -> int:
    """Run ``simclr embed`` with these arguments; return the exit code."""
    return _parser().run(_main, argv)


def _parser() -> Parser:
    parser = Parser("simclr embed", description="Write h of every image in a folder, with its file name.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder or an exported encoder")
    parser.add_argument("images", metavar="IMAGES", type=Path, help="the folder, with its subfolders")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write: .npz, .parquet or .csv")
    parser.add_argument(
        "--map", choices=("tsne", "umap", "pca"), help="also draw the images as points, in a file named as OUT, .png"
    )
    trusting(parser)
    parser.add_reading()
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    return parser


def _main(asked: Any) -> int:
    if asked.map == "umap":
        require("umap", "--map umap")
    write = _writer(asked.out)
    picture = asked.out.with_suffix(".png")
    if asked.map is not None and picture.exists() and picture.resolve().is_relative_to(asked.images.resolve()):
        raise UserError(f"--map would overwrite {picture}, one of the images; give an OUT in another folder")
    for path in (asked.out, *([] if asked.map is None else [picture])):
        if path.is_dir():
            raise UserError(f"{path} is a folder; give another OUT")
        if os.path.lexists(path) and not asked.force:
            raise UserError(f"{path} exists; give another OUT, or --force to overwrite it")
    reading = app.Reading(asked.on_corrupt, asked.max_pixels, asked.full_scale)
    load = partial(runs.load_export, trusted=asked.trusted)
    h, names = embed(asked.run, asked.images, asked.out, write, load=load, reading=reading)
    if asked.map is not None:
        _draw(h, names, picture, asked.map)
        print(f"the map is in {picture}")
    return 0


def embed(
    run: Path,
    images: Path,
    out: Path,
    write: Callable[[Path, Tensor, list[str]], None],
    *,
    load: Callable[[Path], Any],
    reading: app.Reading,
) -> tuple[Tensor, list[str]]:
    """Write h of all images in ``images`` and its subfolders with their relative names, sorted; return both.

    Args:
        run: a run's folder or an exported encoder.
        images: a folder.
        out: the file to write, completely or not at all.
        write: called with a path, h (n, feature_dim) float32 and the names; writes the file.
        load: loads the encoder of ``run``.
        reading: how the image files are read.

    Raises:
        UserError, ValueError: the message names the file and the fix; nothing is written.
    """
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; make it first")
    files.check_writable(out)
    found = app.open_gallery(run, images, keep=False, load=load, reading=reading)
    for note in found.notes:
        print(note)
    names = list(found.files.names)
    with files.whole(out) as fresh:
        write(fresh, found.h, names)
    print(f"{len(names)} images, h of {found.h.shape[1]} numbers each, in {out}")
    return found.h, names


def _draw(h: Tensor, names: list[str], path: Path, method: Literal["tsne", "umap", "pca"]) -> None:
    """Draw the map; if all images are in subfolders, each subfolder has its color."""
    import torch

    folders = sorted({name.partition("/")[0] for name in names}) if all("/" in name for name in names) else []
    number = {folder: place for place, folder in enumerate(folders)}
    labels = torch.tensor([number[name.partition("/")[0]] for name in names]) if len(folders) > 1 else None
    pictures.embedding_map(h, labels, folders or None, path, method=method)


def _writer(out: Path) -> Callable[[Path, Tensor, list[str]], None]:
    writers = {".npz": _npz, ".parquet": _parquet, ".csv": _csv}
    if out.suffix not in writers:
        raise UserError(f"{out}: the name must end in {', '.join(writers)}", code=errors.CONFIGURATION)
    if out.suffix == ".parquet":
        require("pyarrow", ".parquet", "parquet")
    return writers[out.suffix]


def _npz(path: Path, h: Tensor, names: list[str]) -> None:
    import numpy as np

    with path.open("wb") as file:  # np.savez would append .npz to a path
        np.savez(file, h=h.numpy(), files=np.array(names, dtype=np.str_))


def _parquet(path: Path, h: Tensor, names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]  # Parquet requires UTF-8
    rows = pa.FixedSizeListArray.from_arrays(pa.array(h.numpy().ravel()), h.shape[1])
    pq.write_table(pa.table({"file": names, "h": rows}), path)


def _csv(path: Path, h: Tensor, names: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *(f"h{i}" for i in range(h.shape[1]))])
        writer.writerows([name, *row] for name, row in zip(names, h.tolist(), strict=True))
