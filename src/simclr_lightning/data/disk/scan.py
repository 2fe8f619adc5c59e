"""What the folders below a root hold, by the names alone: one pass, links unfollowed, nothing opened.

Legend: F folders, n images.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
REPORTED = 1_000  # images between two reports of progress

Stamp = tuple[int, int, int]  # a folder's time of modification and of change, in nanoseconds, and its inode


@dataclass(frozen=True)
class Scan:
    """Everything below a root that is neither a folder nor hidden, sorted into kinds; links are not resolved.

    Attributes:
        folders: paths of the F folders relative to the root, "" for itself and "/" at the end of each other.
        stamps: (F, 3) int64, the `Stamp` of each before it was read: adding, removing or renaming an entry
            changes it, and no program can set the time of change back.
        names: n paths of image files relative to the root, sorted by code point.
        sizes: (n,) int64, bytes of each.
        others: files that are not images, sorted.
        links: symbolic links, sorted.
        repeated: further names (hard links) of images found under another name, sorted.
    """

    folders: list[str]
    stamps: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]
    others: list[str]
    links: list[str]
    repeated: list[str]


def stamp(folder: str) -> Stamp:
    """The `Stamp` of a folder."""
    status = os.stat(folder)  # noqa: PTH116 - a Path for each of a million folders is slow
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def scan(root: str, report: Callable[[int], None] = lambda images: None) -> Scan:
    """Read every folder below `root` that is not hidden.

    Args:
        root: the folder, links resolved.
        report: told of the images found, every `REPORTED`.

    Raises:
        ValueError: a folder cannot be read.
    """
    folders: list[str] = []
    stamps: list[Stamp] = []
    found: dict[str, int] = {}
    others: list[str] = []
    links: list[str] = []
    hard_linked: dict[tuple[int, int], list[str]] = {}
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        place = f"{root}/{prefix}"
        folders.append(prefix)
        try:
            stamps.append(stamp(place))
            for entry in _entries(place):
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif entry.is_symlink():
                    links.append(name)
                elif is_image(entry.name) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found[name] = status.st_size
                    if status.st_nlink > 1 and status.st_ino:
                        hard_linked.setdefault((status.st_dev, status.st_ino), []).append(name)
                    if not len(found) % REPORTED:
                        report(REPORTED)
                else:
                    others.append(name)
        except OSError as error:
            where = place.rstrip("/") or "/"
            raise ValueError(
                f"{where}: {error.strerror}; make the folder readable, or move it out of data.path"
            ) from None
    repeated = sorted(name for group in hard_linked.values() for name in sorted(group)[1:])
    for name in repeated:
        del found[name]
    names = sorted(found)
    sizes = np.fromiter(map(found.__getitem__, names), dtype=np.int64, count=len(names))
    return Scan(folders, np.array(stamps, dtype=np.int64), names, sizes, sorted(others), sorted(links), repeated)


def _entries(place: str) -> Iterator["os.DirEntry[str]"]:
    """The entries of a folder that are not hidden."""
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name[0] != "." and entry.name != "__MACOSX":
                yield entry


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return name.lower().endswith(EXTENSIONS)
