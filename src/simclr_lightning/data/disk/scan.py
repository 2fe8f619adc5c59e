"""One pass over all folders below a root, by the names alone: no link is followed and no file is opened.

Legend: F folders, n images.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simclr_lightning.data.disk import left_out as known

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
REPORTED = 1_000  # images between two reports of progress

LeftOut = dict[str, tuple[int, str]]
Stamp = tuple[int, int, int]  # a folder's time of modification and of change, in nanoseconds, and its inode


@dataclass(frozen=True)
class Scan:
    """The entries below a root that are not folders, sorted into kinds; links are not resolved.

    Attributes:
        folders: paths of the F folders relative to the root, "" for itself and "/" at the end of each other.
        stamps: (F, 3) int64, the `Stamp` of each before it was read: adding, removing or renaming an entry
            changes it, and programs cannot set the time of change back.
        names: n paths of image files relative to the root, sorted by code point.
        sizes: (n,) int64, bytes of each image file.
        others: files that are not images, sorted.
        links: symbolic links, sorted.
        repeated: further names (hard links) of images that are found under another name, sorted.
        left_out: entries that are no part of the data set (see `left_out`): kind -> count and first path.
    """

    folders: list[str]
    stamps: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]
    others: list[str]
    links: list[str]
    repeated: list[str]
    left_out: LeftOut


def stamp(folder: str) -> Stamp:
    """Return the `Stamp` of a folder."""
    status = os.stat(folder)  # noqa: PTH116 - a Path for each of a million folders is slow
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def scan(root: str, report: Callable[[int], None] = lambda images: None) -> Scan:
    """Read every folder below `root` that is part of the data set.

    Args:
        root: the folder, links resolved; never left out itself, whatever its name.
        report: called with `REPORTED` whenever so many more images were found.

    Raises:
        ValueError: a folder cannot be read.
    """
    found = _Found(root, report)
    folders: list[str] = []
    stamps: list[Stamp] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        folders.append(prefix)
        try:
            stamps.append(stamp(f"{root}/{prefix}"))
            waiting += found.read(prefix)
        except OSError as error:
            where = f"{root}/{prefix}".rstrip("/") or "/"
            raise ValueError(
                f"{where}: {error.strerror}; make the folder readable, or move it out of data.path"
            ) from None
    repeated = sorted(name for group in found.hard_linked.values() for name in sorted(group)[1:])
    for name in repeated:
        del found.sizes[name]
    names = sorted(found.sizes)
    sizes = np.fromiter(map(found.sizes.__getitem__, names), dtype=np.int64, count=len(names))
    others, links, left_out = sorted(found.others), sorted(found.links), dict(sorted(found.left_out.items()))
    return Scan(folders, np.array(stamps, dtype=np.int64), names, sizes, others, links, repeated, left_out)


class _Found:
    """What the folders read so far hold; paths are relative to the root."""

    def __init__(self, root: str, report: Callable[[int], None]) -> None:
        self.root, self.report = root, report
        self.sizes: dict[str, int] = {}
        self.others: list[str] = []
        self.links: list[str] = []
        self.left_out: LeftOut = {}
        self.hard_linked: dict[tuple[int, int], list[str]] = {}

    def read(self, prefix: str) -> list[str]:
        """Read one folder; return the folders in it that are to be read.

        Raises:
            OSError: it cannot be read.
        """
        here = _Entries(f"{self.root}/{prefix}", self.report)
        if here.is_run and prefix:
            self._leave_out(known.RUNS, prefix[:-1])
            return []
        for kind, name in here.left_out:
            self._leave_out(kind, prefix + name)
        self.sizes |= {prefix + name: size for name, size in here.images.items()}
        self.others += [prefix + name for name in here.others]
        self.links += [prefix + name for name in here.links]
        for name, file in here.hard_linked.items():
            self.hard_linked.setdefault(file, []).append(prefix + name)
        return [f"{prefix}{name}/" for name in here.folders]

    def _leave_out(self, kind: str, path: str) -> None:
        count, first = self.left_out.get(kind, (0, path))
        self.left_out[kind] = count + 1, min(first, path)


class _Entries:
    """The entries of one folder by their kinds; names without the folder's.

    Attributes:
        is_run: whether the folder is that of a run.
        folders: those to be read.
        images: bytes of each.
        hard_linked: device and inode of images with several names.
        left_out: kind and name.
    """

    def __init__(self, place: str, report: Callable[[int], None]) -> None:
        self.folders: list[str] = []
        self.images: dict[str, int] = {}
        self.hard_linked: dict[str, tuple[int, int]] = {}
        self.others: list[str] = []
        self.links: list[str] = []
        self.left_out: list[tuple[str, str]] = []
        with os.scandir(place) as entries:
            for entry in entries:
                self._sort(entry)
                if self.images and not len(self.images) % REPORTED and entry.name in self.images:
                    report(REPORTED)
        records = known.RECORDS.intersection(self.others)
        self.is_run = known.is_run(place, {*self.folders, *(name for _, name in self.left_out)}, records)
        for name in known.pictures(self.images, records, run=self.is_run):
            del self.images[name]
            self.hard_linked.pop(name, None)
            self.left_out.append((known.PICTURES, name))
        if self.is_run:
            self.folders = [name for name in self.folders if name not in known.OF_A_RUN]

    def _sort(self, entry: "os.DirEntry[str]") -> None:
        name = entry.name
        is_folder, is_link = entry.is_dir(follow_symlinks=False), entry.is_symlink()
        kind = known.file_kind(name) if not is_folder else None
        if kind is None and (is_folder or is_link):
            kind = known.folder_kind(name)
        if kind is not None:
            self.left_out.append((kind, name))
        elif is_folder:
            self.folders.append(name)
        elif is_link:
            self.links.append(name)
        elif is_image(name) and entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            self.images[name] = status.st_size
            if status.st_nlink > 1 and status.st_ino:
                self.hard_linked[name] = status.st_dev, status.st_ino
        else:
            self.others.append(name)


def is_image(name: str) -> bool:
    """Return whether a file's name has the extension of an image."""
    return name.lower().endswith(EXTENSIONS)
