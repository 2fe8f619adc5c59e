"""The image files below a folder: each once, none from outside it, in one order on every machine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simclr_lightning.data.disk import scan_cache
from simclr_lightning.data.disk.progress import counted
from simclr_lightning.data.disk.scan import REPORTED, LeftOut, Scan, is_image, scan

KINDS = 8  # of entries that are left out, named in a line


@dataclass(frozen=True)
class Listing:
    """The image files below `root`.

    Attributes:
        root: the folder, links resolved.
        names: paths relative to `root`, "/" between their parts, sorted by code point.
        sizes: bytes of each file when the folders were read.
        others: files that are not images.
        outside: links whose target is outside `root`.
        folder_links: links to folders inside `root`; the files of those folders are found without the links.
        broken: links without a target, or in a loop.
        repeated: further names (links) of files that are found under another name.
        left_out: entries that are no part of the data set (see `left_out`): kind -> count and first path.
        cached: whether it comes from the scan of an earlier run, so that sizes may have changed since.
    """

    root: Path
    names: list[str]
    sizes: list[int]
    others: tuple[str, ...]
    outside: tuple[str, ...]
    folder_links: tuple[str, ...]
    broken: tuple[str, ...]
    repeated: tuple[str, ...]
    left_out: LeftOut
    cached: bool


def list_images(root: Path) -> Listing:
    """Return the image files below a folder, by the extensions of their names; no file is opened.

    Links to folders are not followed: files inside `root` are found without them, and files outside `root` are not
    part of it. A link to a file inside `root` is an image when that file is not found under its own name. Hidden
    files, system folders and folders of runs are left out (see `left_out`).

    The scan of a large folder is stored (`scan_cache`) and used again while no folder has changed. Links are resolved
    every time.

    Raises:
        ValueError: a folder cannot be read.
    """
    place = os.path.realpath(root)
    found = scan_cache.read(place)
    if found is not None:
        return _listing(place, found, cached=True)
    started = scan_cache.now()
    with counted(f"listing {place}", unit="images") as report:
        found = scan(place, report)
    scan_cache.write(place, found, started=started)
    return _listing(place, found, cached=False)


def sizes_now(root: Path, names: Sequence[str]) -> list[int]:
    """Return the present sizes of files in bytes; -1 for a file that is gone."""
    sizes: list[int] = []
    with counted(f"checking {root}", unit="images", total=len(names)) as report:
        for start in range(0, len(names), REPORTED):
            sizes += [_size(f"{root}/{name}") for name in names[start : start + REPORTED]]
            report(REPORTED)
    return sizes


def passed_over(listing: Listing) -> list[str]:
    """Return a line for each kind of entry that is not among the images, with the number and an example."""
    kinds = (
        (listing.others, "not named like images"),
        (listing.outside, "links that lead out of data.path"),
        (listing.folder_links, "links to folders, which are not followed"),
        (listing.broken, "links without a target"),
        (listing.repeated, "further names of the same files"),
    )
    lines = [f"{len(names):,} passed over: {what} (e.g. {names[0]})" for names, what in kinds if names]
    if listing.left_out:
        shown = [f"{kind} ({count:,}, e.g. {path})" for kind, (count, path) in [*listing.left_out.items()][:KINDS]]
        more = len(listing.left_out) - KINDS
        lines.append(f"left out: {', '.join(shown)}" + (f" and {more:,} more kinds" if more > 0 else ""))
    return lines


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size  # noqa: PTH116 - a Path for each file is slow
    except OSError:
        return -1


def _listing(place: str, found: Scan, *, cached: bool) -> Listing:
    root = Path(place)
    sorts: dict[str, list[str]] = {key: [] for key in ("others", "outside", "folder_links", "broken", "repeated")}
    linked = _linked_files(root, found, sorts) if found.links else {}
    names, sizes = found.names, found.sizes.tolist()
    if linked:
        size = dict(zip(names, sizes, strict=True)) | linked
        names = sorted(size)
        sizes = [size[name] for name in names]
    return Listing(
        root=root,
        names=names,
        sizes=sizes,
        others=tuple(sorted(found.others + sorts["others"])),
        outside=tuple(sorts["outside"]),
        folder_links=tuple(sorts["folder_links"]),
        broken=tuple(sorts["broken"]),
        repeated=tuple(sorted(found.repeated + sorts["repeated"])),
        left_out=found.left_out,
        cached=cached,
    )


def _linked_files(root: Path, found: Scan, sorts: dict[str, list[str]]) -> dict[str, int]:
    """The links that are the only name of an image file, with its size; other links are added to ``sorts``."""
    linked: dict[str, int] = {}
    own, targets = set(found.names), set()
    for name in found.links:
        target = Path(os.path.realpath(root / name))
        if not target.is_relative_to(root):
            sorts["outside"].append(name)
        elif target.is_dir():
            sorts["folder_links"].append(name)
        elif not target.is_file():
            sorts["broken"].append(name)
        elif target.relative_to(root).as_posix() in own or target in targets:
            sorts["repeated"].append(name)
        elif not is_image(name):
            sorts["others"].append(name)
        else:
            targets.add(target)
            linked[name] = target.stat().st_size
    return linked
