"""``simclr embed RUN IMAGES OUT``: the representation h of every image of a folder, with its file name."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from simclr_lightning import app, files, pictures
from simclr_lightning.app import errors
from simclr_lightning.app.errors import UserError
from simclr_lightning.cli.guard import guard_command
from simclr_lightning.cli.parser import Parser
from simclr_lightning.extras import require

if TYPE_CHECKING:
    from torch import Tensor


def main(argv: Sequence[str]) -> int:
    """Embed as the arguments say; return the exit code."""
    return guard_command(_main, argv)


def _parser() -> Parser:
    parser = Parser("simclr embed", description="Write h of every image of a folder, with its file name.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run's folder or an exported encoder")
    parser.add_argument("images", metavar="IMAGES", type=Path, help="the folder, with its subfolders")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write: .npz, .parquet or .csv")
    parser.add_argument(
        "--map", choices=("tsne", "umap", "pca"), help="draw the images as points too, in OUT's name with .png"
    )
    parser.add_argument("--force", action="store_true", help="write over what is there")
    return parser


def _main(words: Sequence[str]) -> int:
    asked = _parser().parse(words)
    if asked is None:
        return 0
    if asked.map == "umap":
        require("umap", "--map umap")
    write = _writer(asked.out)
    picture = asked.out.with_suffix(".png")
    if asked.map is not None and picture.exists() and picture.resolve().is_relative_to(asked.images.resolve()):
        raise UserError(f"--map would be drawn over {picture}, one of the images; give an OUT elsewhere")
    for path in (asked.out, *([] if asked.map is None else [picture])):
        if path.is_dir():
            raise UserError(f"{path} is a folder; give another OUT")
        if os.path.lexists(path) and not asked.force:
            raise UserError(f"{path} exists; give another OUT, or --force to write over it")
    h, names = embed(asked.run, asked.images, asked.out, write)
    if asked.map is not None:
        _draw(h, names, picture, asked.map)
        print(f"the map is in {picture}")
    return 0


def embed(
    run: Path, images: Path, out: Path, write: Callable[[Path, Tensor, list[str]], None]
) -> tuple[Tensor, list[str]]:
    """Write h of all images below ``images`` with names relative to it, sorted; return both.

    Args:
        run: a run's folder or an exported encoder.
        images: a folder.
        out: the file to write, whole or not at all.
        write: writes (path, h (n, feature_dim) float32, names).

    Raises:
        UserError: and the library's ValueError, naming the file and the mend; nothing is written then.
    """
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: its folder does not exist; make it first")
    files.check_writable(out)
    found = app.open_gallery(run, images, keep=False)
    names = list(found.files.names)
    with files.whole(out) as fresh:
        write(fresh, found.h, names)
    print(f"{len(names)} images, h of {found.h.shape[1]} numbers each, in {out}")
    return found.h, names


def _draw(h: Tensor, names: list[str], path: Path, method: Literal["tsne", "umap", "pca"]) -> None:
    """A map; images in folders are coloured by their folder."""
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

    with path.open("wb") as file:  # given a path, it would add to its name
        np.savez(file, h=h.numpy(), files=np.array(names, dtype=np.str_))


def _parquet(path: Path, h: Tensor, names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]  # Parquet's texts are UTF-8
    rows = pa.FixedSizeListArray.from_arrays(pa.array(h.numpy().ravel()), h.shape[1])
    pq.write_table(pa.table({"file": names, "h": rows}), path)


def _csv(path: Path, h: Tensor, names: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *(f"h{i}" for i in range(h.shape[1]))])
        writer.writerows([name, *row] for name, row in zip(names, h.tolist(), strict=True))
