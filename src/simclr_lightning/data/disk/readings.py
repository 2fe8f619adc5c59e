"""Which folders of a data set are its parts: by their names where that is certain, else refused with both readings.

A folder is written with "/" at its end; "" is the data set's own folder.
"""

import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from simclr_lightning.data.disk.levels import SHOWN, base_of, listed, tops_of, with_parts
from simclr_lightning.data.disk.part_names import PartName, part_name

Key = Literal["train", "val", "test"]
KEYS: Final[tuple[Key, ...]] = ("train", "val", "test")


@dataclass(frozen=True)
class Chosen:
    """The keys data.dataset.train, val and test: a folder's name relative to data.path, or None to find it by name.

    Attributes:
        train: "." for the data set's own folder: its subfolders, without those of val and test, are the classes.
        val: the folder of the held-out part.
        test: the folder of the test part.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None


@dataclass(frozen=True)
class Reading:
    """Which folder is which part.

    Attributes:
        train: the training images; images of the other parts inside it do not count.
        val: the held-out part.
        test: the test part.
        unlabeled: more training images, without labels.
        chosen: the parts that a key names.
        notes: lines to print.
    """

    train: str
    val: str | None = None
    test: str | None = None
    unlabeled: tuple[str, ...] = ()
    chosen: frozenset[Key] = frozenset()
    notes: tuple[str, ...] = ()


class AmbiguousFolder(ValueError):
    """A folder that can be read in two ways; the message shows both and the keys that decide."""


def read(folders: Mapping[str, int], chosen: Chosen) -> Reading:
    """Return which folders of a data set are its parts.

    Args:
        folders: number of images directly in each folder, relative and without "/" at its end; "" is data.path itself.
        chosen: the parts that the user named.

    Raises:
        AmbiguousFolder: the folders can be read in two ways.
        ValueError: a key names no folder with images, or two keys name the same one.
    """
    given = {key: _checked(key, value, folders) for key in KEYS if (value := getattr(chosen, key)) is not None}
    if len(set(given.values())) < len(given):
        same = " ".join(f"data.dataset.{key}={getattr(chosen, key)}" for key in given)
        raise ValueError(f"{same}: name another folder for each part")
    train = given.get("train")
    if train == "":
        found = Reading("")
    elif train is not None:
        found = _next_to(train, folders, given)
    else:
        base = "" if given else base_of(folders)
        found = _Level(folders, base, without=given.values()).reading()
    val, test = given.get("val", found.val), given.get("test", found.test)
    return replace(found, val=val, test=test, chosen=frozenset(given))


def _checked(key: Key, value: str, folders: Collection[str]) -> str:
    """The folder that a key names."""
    folder = posixpath.normpath(value)
    if folder == "." and key == "train":
        return ""
    if not any(name == folder or name.startswith(f"{folder}/") for name in folders):
        tops = sorted({name.split("/", 1)[0] for name in folders} - {""})
        there = f"its folders with images are {listed(tops)}" if tops else "it has no folders with images"
        raise ValueError(f"data.dataset.{key}={value}: there is no such folder with images in data.path; {there}")
    return f"{folder}/"


def _next_to(train: str, folders: Mapping[str, int], given: Mapping[Key, str]) -> Reading:
    """The reading with a folder for training that the user named; val and test are found next to it."""
    base = train[: train[:-1].rfind("/") + 1]
    rests = {(), part_name(train[len(base) : -1]).rest}
    level = _Level(folders, base, without=given.values())
    val, test = level.val_and_test([top for top in level.tops if level.named[top].rest in rests], but=given)
    return Reading(train, val, test)


class _Level:
    """The folders of one level, read by their names.

    Args:
        folders: images in each folder of the data set.
        base: the folder whose folders are read.
        without: folders that count as not there.
    """

    def __init__(self, folders: Mapping[str, int], base: str, *, without: Iterable[str]) -> None:
        self.folders, self.base = folders, base
        self.tops, self.loose = tops_of(folders, base, without)
        self.named: dict[str, PartName] = {top: part_name(top) for top in self.tops}

    def reading(self) -> Reading:
        """The parts, when they are certain."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for top, name in self.named.items():
            if name.role is not None:
                groups.setdefault(name.rest, []).append(top)
        whole = [g for g in groups.values() if self._of(g, "train") and len({self.named[top].role for top in g}) > 1]
        if len(whole) > 1:
            raise self._several([top for group in whole for top in self._of(group, "train")], "training images")
        if whole:
            return self._parts(whole[0])
        trains = [top for top in self._of(self.tops, "train") if self.named[top].clear]
        return self._train_alone(trains) if trains else self._without_train()

    def _parts(self, group: list[str]) -> Reading:
        """Training images and at least one other part with the same kind of name."""
        trains, others = self._of(group, "train"), [top for top in self.tops if top not in group]
        if len(trains) > 1:
            raise self._several(trains, "training images")
        if not self.tops[trains[0]].inner and any(self.named[top].is_class for top in others):
            raise self._ambiguous(f"parts {listed(group)}, not used {listed(others)}", self._key(trains[0]))
        val, test = self.val_and_test(group)
        unlabeled = tuple(f"{self.base}{top}/" for top in self._of(group, "unlabeled"))
        return Reading(f"{self.base}{trains[0]}/", val, test, unlabeled)

    def val_and_test(self, group: Sequence[str], but: Collection[str] = ()) -> tuple[str | None, str | None]:
        """The folders of val and test among some; ``but`` holds the parts that are known already."""
        vals, tests, either = (self._of(group, role) for role in ("val", "test", "held_out"))
        if not vals and "val" not in but:
            vals, either = either, []
        if not tests and "test" not in but:
            tests = either
        for key, found, what in (("val", vals, "held-out part"), ("test", tests, "test part")):
            if key not in but and len(found) > 1:
                raise self._several(found, what, key)
        val, test = (f"{self.base}{found[0]}/" if found else None for found in (vals, tests))
        return val, test

    def _train_alone(self, trains: list[str]) -> Reading:
        """Folders named like training images and none like another part: training images, or classes."""
        others = [top for top in self.tops if top not in trains]
        flat = not self.loose and not any(top.inner for top in self.tops.values())
        counts = [sum(self.tops[top].images for top in part) for part in (trains, others)]
        if flat and others and all(self.named[top].is_class for top in others) and counts[0] <= counts[1]:
            note = f"{listed(trains)} is read as a class; for a folder of training images: {self._key(trains[0])}"
            return Reading(self.base, notes=(note,))
        if len(trains) > 1:
            raise self._several(trains, "training images")
        if others or (self.loose and not self.tops[trains[0]].inner):
            unused = listed(others) or f"{self.loose:,} images next to it"
            raise self._ambiguous(f"training images {trains[0]}/, not used {unused}", self._key(trains[0]))
        return Reading(f"{self.base}{trains[0]}/")

    def _without_train(self) -> Reading:
        """Folders of which none is named like training images: classes, or classes next to another part."""
        bare = [top for top, name in self.named.items() if name.role is not None and not name.rest]
        tests = [top for top in bare if self.named[top].role in ("val", "test", "held_out")]
        if tests and len(bare) == len(self.tops):
            name = "NAME" if len(bare) > 1 else bare[0]
            raise self._ambiguous(f"parts {listed(bare)}, one of them to train on", self._key(name))
        if sure := [top for top in tests if self.named[top].clear or self.tops[top].inner & self.tops.keys()]:
            parts = zip(("val", "test"), self.val_and_test(sure), strict=True)
            keys = [self._key(""), *(f"data.dataset.{key}={part[:-1]}" for key, part in parts if part)]
            rest = [top for top in self.tops if top not in sure]
            raise self._ambiguous(f"classes {listed(rest)}, not trained on {listed(sure)}", " ".join(keys))
        if split := with_parts(self.folders):
            path = f"data.path=.../{split[0]}, or sort the images into train/CLASS/ and test/CLASS/"
            raise self._ambiguous(f"parts inside {listed(split)}", path)
        return Reading(self.base)

    def _of(self, group: Iterable[str], role: str) -> list[str]:
        return [top for top in group if self.named[top].role == role]

    def _key(self, top: str) -> str:
        return f"data.dataset.train={(self.base + top).rstrip('/') or '.'}"

    def _several(self, tops: Sequence[str], what: str, key: str = "train") -> AmbiguousFolder:
        keys = " or ".join(f"data.dataset.{key}={self.base}{top}" for top in tops[:SHOWN])
        return self._ambiguous(f"{what} in one of {listed(tops)}", keys)

    def _ambiguous(self, parts: str, keys: str) -> AmbiguousFolder:
        return AmbiguousFolder(
            "the folders in data.path can be read in two ways; add the keys of the right one:\n"
            f"  1. {parts}: {keys}\n"
            f"  2. classes {listed([*self.tops])}, all trained on: {self._key('')}"
        )
