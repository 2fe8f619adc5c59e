"""``simclr embed RUN IMAGES OUT``: the representation h of every image of a folder, with its file name."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simclr_lightning.cli import errors
from simclr_lightning.cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

USAGE = "usage: simclr embed RUN IMAGES OUT   (OUT ends in .npz, .parquet or .csv)"


def main(argv: Sequence[str]) -> int:
    """Embed as the words say; returns the exit code."""
    words = [word for word in argv if word != "debug=true"]
    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    return errors.guard(lambda: _main(words), debug="debug=true" in argv)


def _main(words: Sequence[str]) -> int:
    if len(words) != 3:
        raise UserError(f"embed takes three words, not {len(words)}\n{USAGE}", code=errors.CONFIGURATION)
    run, images, out = (Path(word) for word in words)
    write = _writer(out)
    embed(run, images, out, write)
    return 0


def embed(run: Path, images: Path, out: Path, write: Callable[[Path, Tensor, list[str]], None]) -> None:
    """Write h of all images below ``images`` with names relative to it, sorted.

    Args:
        run: a run's folder or an exported encoder.
        images: a folder.
        out: the file to write, whole or not at all.
        write: writes (path, h (n, feature_dim) float32, names).

    Raises:
        UserError: and the library's ValueError, naming the file and the mend; nothing is written then.
    """
    from simclr_lightning.cli.gallery import open_gallery

    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: its folder does not exist; make it first")
    found = open_gallery(run, images, keep=False)
    fresh = out.with_name(f".{out.name}.{os.getpid()}.tmp{out.suffix}")
    try:
        write(fresh, found.h, list(found.files.names))
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
    print(f"{len(found.files)} images, h of {found.h.shape[1]} numbers each, in {out}")


def _writer(out: Path) -> Callable[[Path, Tensor, list[str]], None]:
    writers = {".npz": _npz, ".parquet": _parquet, ".csv": _csv}
    if out.suffix not in writers:
        raise UserError(f"{out}: the name must end in {', '.join(writers)}", code=errors.CONFIGURATION)
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401  # only asked whether it is there, before any work
        except ImportError as error:
            raise UserError(".parquet needs a package: pip install 'simclr-lightning[parquet]'") from error
    return writers[out.suffix]


def _npz(path: Path, h: Tensor, names: list[str]) -> None:
    import numpy as np

    np.savez(path, h=h.numpy(), files=np.array(names, dtype=np.str_))


def _parquet(path: Path, h: Tensor, names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(h.numpy().ravel()), h.shape[1])
    pq.write_table(pa.table({"file": names, "h": rows}), path)


def _csv(path: Path, h: Tensor, names: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *(f"h{i}" for i in range(h.shape[1]))])
        writer.writerows([name, *row] for name, row in zip(names, h.tolist(), strict=True))
