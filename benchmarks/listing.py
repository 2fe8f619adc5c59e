"""Listing a folder of images: the time for a million files, new and from the kept list.

    python benchmarks/listing.py                     # 1,000 folders of 1,000 empty files; a minute or two
    python benchmarks/listing.py --folders 100       # a smaller run
    python benchmarks/listing.py --under /mnt/disk   # on another file system

The files are made in a temporary folder and removed again. "CPU" is this process's own time, which other work on the
machine does not lengthen. After the listing come the other parts of a start that touch every file's name.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from machine import machine
from simclr_lightning.data.disk.layout import lay_out
from simclr_lightning.data.disk.listing import Listing, list_images, sizes_now
from simclr_lightning.data.disk.scan_cache import SETTLED
from simclr_lightning.data.images import PackedNames, choose_held_out, digest

T = TypeVar("T")


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

    def timed(what: str, function: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        seconds, busy = time.perf_counter() - wall, time.process_time() - cpu
        rows.append({"what": what, "seconds": round(seconds, 2), "cpu_seconds": round(busy, 2)})
        return result

    first: Listing = timed("list, new", lambda: list_images(root))
    second: Listing = timed("list, kept", lambda: list_images(root))
    assert second.cached
    assert second.names == first.names
    layout = timed("parts and labels", lambda: lay_out(second.names, labels=True, seed=0))
    train = layout.train
    names = timed("names packed", lambda: PackedNames(train.names))
    timed("held-out part", lambda: choose_held_out(len(names), train.labels, seed=0))
    timed("fingerprint of the names", lambda: digest("folder", names, train.labels))
    timed("sizes again (before a resume)", lambda: sizes_now(root, first.names))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--files", type=int, default=1000, help="in each folder")
    parser.add_argument("--under", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.under) as temporary:
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        root = Path(temporary) / "images"
        make(root, options.folders, options.files)
        time.sleep(SETTLED / 1e9 + 0.5)
        rows = measure(root)
    print(f"{options.folders * options.files:,} files in {options.folders:,} folders\n")
    print("| | seconds | of them CPU |\n|---|---|---|")
    for row in rows:
        print(f"| {row['what']} | {row['seconds']} | {row['cpu_seconds']} |")
    found = {
        **machine("torch"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "folders": options.folders,
        "files": options.files,
        "rows": rows,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
