"""The folders of a data set, level by level.

A folder is written with "/" at its end; "" is the data set's own folder.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from simclr_lightning.data.disk.part_names import part_name

SHOWN: Final = 5  # folders named in a message
FEW: Final = 20  # a folder with parts in it has few folders: more are classes


@dataclass
class Top:
    """A folder of one level: the number of its images, and the names of the folders in it."""

    images: int
    inner: set[str]


def tops_of(folders: Mapping[str, int], base: str, without: Iterable[str] = ()) -> tuple[dict[str, Top], int]:
    """Return the folders in ``base`` that have images, by their names, sorted; and the number of images next to them.

    Args:
        folders: number of images directly in each folder of the data set.
        base: "" or with "/" at its end.
        without: folders that do not count, with "/" at their ends.
    """
    tops: dict[str, Top] = {}
    loose, left_out = 0, tuple(without)
    for folder, images in sorted(folders.items()):
        if not f"{folder}/".startswith(base) or f"{folder}/".startswith(left_out):
            continue
        name, _, below = folder[len(base) :].partition("/")
        if not name:
            loose += images
            continue
        top = tops.setdefault(name, Top(0, set()))
        top.images += images
        if below:
            top.inner.add(below.partition("/")[0])
    return tops, loose


def base_of(folders: Mapping[str, int]) -> str:
    """Return the folder with the parts when all images are in it: archive/ for archive/train/ and archive/test/.

    "" when the parts are not in such a folder.
    """
    base = ""
    tops, loose = tops_of(folders, base)
    while len(tops) == 1 and not loose:
        base += f"{next(iter(tops))}/"
        tops, loose = tops_of(folders, base)
    return base if has_parts(tops) else ""


def has_parts(tops: Collection[str]) -> bool:
    """Return whether one of the names is clearly that of training images, and another one that of another part."""
    named = [part_name(top) for top in tops] if len(tops) <= FEW else []
    return any(name.role == "train" and name.clear for name in named) and len({n.role for n in named} - {None}) > 1


def with_parts(folders: Iterable[str]) -> list[str]:
    """Return the folders, sorted, whose folders are named like the parts of a data set."""
    inner: dict[str, set[str]] = {}
    for folder in folders:
        above = folder.split("/")
        for depth in range(1, len(above)):
            inner.setdefault("/".join(above[:depth]), set()).add(above[depth])
    return sorted(folder for folder, names in inner.items() if has_parts(names))


def inside(folder: str, folders: Iterable[str]) -> str:
    """Return where a part's images begin: seg_train/seg_train/ for seg_train/, train/images/ for train/.

    Args:
        folder: the part's folder.
        folders: every folder with images, without "/" at its end.
    """
    counts = dict.fromkeys(folders, 1)
    while folder:
        tops, loose = tops_of(counts, folder)
        own, only = part_name(folder[:-1].rpartition("/")[2]), part_name(next(iter(tops), ""))
        is_same = only.role is not None and (only.role, only.rest) == (own.role, own.rest)
        is_filler = only.role is None and not only.rest and not only.is_class
        if loose or len(tops) != 1 or not (is_same or is_filler):
            break
        folder += f"{next(iter(tops))}/"
    return folder


def listed(tops: Sequence[str]) -> str:
    """Return the first folders as text: "cat/, dog/ and 3 more"."""
    more = f" and {len(tops) - SHOWN:,} more" if len(tops) > SHOWN else ""
    return ", ".join(f"{top}/" for top in tops[:SHOWN]) + more
