"""Which image files a folder holds: each once, none from outside it, in one order on every machine."""

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
        names: paths relative to it, "/" between their parts, sorted by code point.
        sizes: bytes of each when the folders were read.
        others: files that are not images.
        outside: links whose target lies outside `root`.
        folder_links: links to folders inside `root` (whose files are found in their own place).
        broken: links without a target, loops among them.
        repeated: further names (links) of files that were already found.
        left_out: entries that are no part of the data set (see `left_out`): kind -> count and first path.
        kept: whether it comes from an earlier run's scan, so that sizes may have changed since.
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
    kept: bool


def list_images(root: Path) -> Listing:
    """List the image files below a folder, by their names' ends; nothing is opened.

    Links to folders are not followed: what they lead to inside `root` is found in its own place, once, and
    what lies outside was not asked for. A link to a file inside `root` counts when that file is not found
    under a name of its own. Hidden files and folders are passed over.

    The scan of a large folder is kept (`scan_cache`) and taken again while no folder has changed; links are
    resolved every time.

    Raises:
        ValueError: a folder cannot be read.
    """
    place = os.path.realpath(root)
    found = scan_cache.kept(place)
    if found is not None:
        return _listing(place, found, kept=True)
    started = scan_cache.now()
    with counted(f"listing {place}", unit="images") as report:
        found = scan(place, report)
    scan_cache.keep(place, found, started=started)
    return _listing(place, found, kept=False)


def sizes_now(root: Path, names: Sequence[str]) -> list[int]:
    """The sizes in bytes as they are at this moment; -1 for a file that is gone."""
    sizes: list[int] = []
    with counted(f"checking {root}", unit="images", total=len(names)) as report:
        for start in range(0, len(names), REPORTED):
            sizes += [_size(f"{root}/{name}") for name in names[start : start + REPORTED]]
            report(REPORTED)
    return sizes


def passed_over(listing: Listing) -> list[str]:
    """One line for each kind of entry that is not among the images."""
    kinds = (
        (listing.others, "not named like images"),
        (listing.outside, "links that lead out of data.path"),
        (listing.folder_links, "links to folders, which are not followed"),
        (listing.broken, "links that lead nowhere"),
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


def _listing(place: str, found: Scan, *, kept: bool) -> Listing:
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
        kept=kept,
    )


def _linked_files(root: Path, found: Scan, sorts: dict[str, list[str]]) -> dict[str, int]:
    """The links that are a file's only name as an image, with its size; the others are sorted by what they are."""
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
