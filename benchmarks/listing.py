"""The time to list a folder of a million image files, for the first time and from the cached list.

    python benchmarks/listing.py                     # 1,000 folders of 1,000 empty files; a minute or two
    python benchmarks/listing.py --quick             # 25 folders; fewer than 20,000 files are not cached
    python benchmarks/listing.py --under /mnt/disk   # on another file system

The script makes the files in a temporary folder and removes them. CPU seconds are those of this process and its
children, which other work on the machine does not lengthen. After the listing come the other steps of a start that read
every file's name.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from _harness import arguments, parse, table, timed, write
from simclr_lightning.data.disk.layout import lay_out
from simclr_lightning.data.disk.listing import list_images, sizes_now
from simclr_lightning.data.disk.scan_cache import SETTLED
from simclr_lightning.data.images import PackedNames, choose_held_out, digest

T = TypeVar("T")
COLUMNS = {"": "{what}", "seconds": "{seconds}", "CPU seconds": "{cpu_seconds}"}


def make(root: Path, folders: int, files: int) -> None:
    for number in range(folders):
        place = root / f"class_{number:04d}"
        place.mkdir(parents=True)
        descriptor = os.open(place, os.O_RDONLY)
        for index in range(files):
            os.close(os.open(f"image_{index:06d}.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        os.close(descriptor)


def measure(root: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def step(what: str, run: Callable[[], T]) -> T:
        took = timed(run)
        rows.append({"what": what, "seconds": round(took.seconds, 2), "cpu_seconds": round(took.cpu_seconds, 2)})
        return took.result

    first = step("list, new", lambda: list_images(root))
    second = step("list, cached", lambda: list_images(root))
    assert second.cached
    assert second.names == first.names
    train = step("parts and labels", lambda: lay_out(second.names, labels=True, seed=0)).train
    names = step("names packed", lambda: PackedNames(train.names))
    step("held-out part", lambda: choose_held_out(len(names), train.labels, seed=0))
    step("fingerprint of the names", lambda: digest("folder", names, train.labels))
    step("sizes again (before a resume)", lambda: sizes_now(root, first.names))
    return rows


def main() -> None:
    parser = arguments(__file__, __doc__)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000, help="in each folder")
    parser.add_argument("--under", type=Path, help="where the temporary folder is made")
    options = parse(parser)
    folders, files = (25, 1000) if options.quick else (options.folders, options.files)
    with tempfile.TemporaryDirectory(dir=options.under) as temporary:
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        root = Path(temporary) / "images"
        make(root, folders, files)
        time.sleep(SETTLED / 1e9 + 0.5)
        rows = measure(root)
    print(f"{folders * files:,} files in {folders:,} folders\n")
    print(table(COLUMNS, rows))
    write(options, "torch", folders=folders, files=files, rows=rows)


if __name__ == "__main__":
    main()
