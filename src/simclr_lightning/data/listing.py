"""Which image files a folder holds: each once, none from outside it, in one order on every machine."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    )
)


@dataclass(frozen=True)
class Listing:
    """The image files below `root`.

    Attributes:
        root: the folder, links resolved.
        names: paths relative to it, "/" between their parts, sorted by code point.
        sizes: bytes of each.
        others: files that are not images.
        outside: links whose target lies outside `root`.
        folder_links: links to folders inside `root` (whose files are found in their own place).
        broken: links without a target, loops among them.
        repeated: further names (links) of files that were already found.
    """

    root: Path
    names: list[str]
    sizes: list[int]
    others: tuple[str, ...]
    outside: tuple[str, ...]
    folder_links: tuple[str, ...]
    broken: tuple[str, ...]
    repeated: tuple[str, ...]


def list_images(root: Path) -> Listing:
    """List the image files below a folder, by their names' ends; nothing is opened.

    Links to folders are not followed: what they lead to inside `root` is found in its own place, once, and
    what lies outside was not asked for. A link to a file inside `root` counts when that file is not found
    under a name of its own. Hidden files and folders are passed over.

    Raises:
        ValueError: a folder cannot be read.
    """
    root = Path(os.path.realpath(root))
    found: dict[str, int] = {}
    others: list[str] = []
    links: list[str] = []
    hard_linked: dict[tuple[int, int], list[str]] = {}
    for name, entry in _walk(root):
        if entry.is_symlink():
            links.append(name)
        elif not (_is_image(name) and entry.is_file(follow_symlinks=False)):
            others.append(name)
        else:
            status = entry.stat(follow_symlinks=False)
            found[name] = status.st_size
            if status.st_nlink > 1 and status.st_ino:
                hard_linked.setdefault((status.st_dev, status.st_ino), []).append(name)
    repeated = [name for group in hard_linked.values() for name in sorted(group)[1:]]
    for name in repeated:
        del found[name]
    sorts = _add_linked_files(root, sorted(links), found)
    names = sorted(found)
    return Listing(
        root=root,
        names=names,
        sizes=[found[name] for name in names],
        others=tuple(sorted(others + sorts["others"])),
        outside=tuple(sorts["outside"]),
        folder_links=tuple(sorts["folder_links"]),
        broken=tuple(sorts["broken"]),
        repeated=tuple(sorted(repeated + sorts["repeated"])),
    )


def _walk(root: Path) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Every entry below `root` that is neither a folder nor hidden, with its name; links unfollowed."""
    folders = [""]
    while folders:
        prefix = folders.pop()
        place = root / prefix
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{prefix}{entry.name}/")
                    else:
                        yield prefix + entry.name, entry
        except OSError as error:
            raise ValueError(
                f"{place}: {error.strerror}; make the folder readable, or move it out of data.path"
            ) from None


def _add_linked_files(root: Path, links: list[str], found: dict[str, int]) -> dict[str, list[str]]:
    """Add the links that are a file's only name as an image; sort the others by what they are."""
    sorts: dict[str, list[str]] = {key: [] for key in ("others", "outside", "folder_links", "broken", "repeated")}
    targets = set()
    for name in links:
        target = Path(os.path.realpath(root / name))
        if not target.is_relative_to(root):
            sorts["outside"].append(name)
        elif target.is_dir():
            sorts["folder_links"].append(name)
        elif not target.is_file():
            sorts["broken"].append(name)
        elif target.relative_to(root).as_posix() in found or target in targets:
            sorts["repeated"].append(name)
        elif not _is_image(name):
            sorts["others"].append(name)
        else:
            targets.add(target)
            found[name] = target.stat().st_size
    return sorts


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122 - a Path for each file is slow
