"""The images and labels of each part of a data set, from relative file names."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simclr_lightning.data.disk.levels import inside, listed
from simclr_lightning.data.disk.part_names import part_name
from simclr_lightning.data.disk.readings import Chosen, Key, Reading, read
from simclr_lightning.data.images import TEST_STREAM, choose, choose_held_out

TEST_SHARE = 0.2  # of a labeled folder without a test part
BY_NAME = Chosen()


@dataclass(frozen=True)
class Part:
    """Images of one part: sorted names, and labels (n,) int64 or None; -1 where an image has none."""

    names: list[str]
    labels: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """The parts of a data set.

    Attributes:
        train: images to train on.
        val: images that choices are made on, never trained on; None where a tenth of `train` is held out for that.
        test: images that scores are measured on.
        class_names: one name a class number; None without labels.
        notes: lines to print.
    """

    train: Part
    val: Part | None
    test: Part | None
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]

    def rows(self) -> Part:
        """The images of `train`, followed by those of `val`."""
        if self.val is None:
            return self.train
        labels = self.train.labels
        if labels is not None:
            assert self.val.labels is not None
            labels = torch.cat((labels, self.val.labels))
        return Part(self.train.names + self.val.names, labels)

    @property
    def val_images(self) -> int:
        """How many images `val` has."""
        return 0 if self.val is None else len(self.val.names)

    def val_names(self) -> list[list[str]]:
        """What a fingerprint holds in addition: the names of `val`, if there is one."""
        return [] if self.val is None else [self.val.names]

    def held_out(self, seed: int) -> Tensor:
        """Rows (m,) int64 of `rows` that choices are made on: those of `val`, else a seeded tenth of `train`."""
        n = len(self.train.names)
        if self.val is not None:
            return torch.arange(n, n + len(self.val.names))
        return choose_held_out(n, self.train.labels, seed=seed)


def lay_out(names: list[str], *, labels: bool, seed: int, chosen: Chosen = BY_NAME) -> Layout:
    """Return the parts, classes and labels that relative file names show ("/" between their parts, sorted).

    Parts are found by `read`. A part is labeled when each of its images is in a folder and there are at least two
    folders; those of the first level are the classes. Images of a class folder named like "unlabeled" have no label.
    A labeled data set without a labeled test part gives a seeded fifth of its images, of every class its share.

    Args:
        names: relative file names.
        labels: False ignores the class folders.
        seed: chooses the fifth.
        chosen: folders that the user named.

    Raises:
        AmbiguousFolder: the folders can be read in two ways.
        ValueError: a key names no folder; or the classes of a part are partly others than train's.
    """
    folders = Counter(name.rpartition("/")[0] for name in names)
    reading = read(folders, chosen)
    both: tuple[tuple[Key, str | None], ...] = ("val", reading.val), ("test", reading.test)
    others = {key: folder for key, folder in both if folder is not None}
    train = _Files(names, inside(reading.train, folders), without=others.values())
    layout = _labeled(train, reading) if labels else Layout(Part(train.names), None, None, None, ())
    layout = replace(layout, notes=(*reading.notes, *layout.notes))
    layout = _with_unlabeled(layout, reading, [_Files(names, folder) for folder in reading.unlabeled])
    layout = _with_parts(layout, reading, {key: _Files(names, inside(others[key], folders)) for key in others})
    if unused := _unused(folders, [reading.train, *reading.unlabeled, *others.values()]):
        layout = _noted(layout, f"not used, being no part: {unused}")
    if layout.train.labels is not None and layout.test is None:
        layout = _hold_aside(layout, seed)
    return layout


class _Files:
    """The files below a folder.

    Args:
        names: all files, sorted.
        folder: "" or with "/" at its end.
        without: folders inside whose files do not count.
    """

    def __init__(self, names: Sequence[str], folder: str, without: Iterable[str] = ()) -> None:
        self.folder = folder
        self.names = [*_slice(names, folder)]
        for other in without:
            if other.startswith(folder):
                self.names = [name for name in self.names if not name.startswith(other)]

    def classes(self) -> list[str] | None:
        """The class of each file: its folder of the first level; None when one of them lies in none."""
        cut = len(self.folder)
        if any("/" not in name[cut:] for name in self.names):
            return None
        return [name[cut:].split("/", 1)[0] for name in self.names]


def _slice(names: Sequence[str], folder: str) -> Sequence[str]:
    """The names below a folder, which lie next to each other."""
    if not folder:
        return names
    return names[bisect_left(names, folder) : bisect_left(names, f"{folder[:-1]}0")]  # "0" follows "/"


def _noted(layout: Layout, note: str) -> Layout:
    return replace(layout, notes=(*layout.notes, note))


def _numbers(classes: Iterable[str], class_names: Sequence[str]) -> Tensor:
    """Class numbers (n,) int64; -1 for a class that is not among the names."""
    number = {name: index for index, name in enumerate(class_names)}
    return torch.tensor([number.get(name, -1) for name in classes], dtype=torch.int64)


def _labeled(files: _Files, reading: Reading) -> Layout:
    """All files as the training part, labeled if their folders say so."""
    plain = Layout(Part(files.names), None, None, None, ())
    classes, cut = files.classes(), len(files.folder)
    if classes is None:
        loose = next(name for name in files.names if "/" not in name[cut:])
        mixed = any("/" in name[cut:] for name in files.names)
        return _noted(plain, f"not labeled: {loose} is in no class folder") if mixed else plain
    found = sorted(set(classes))
    without = [] if "train" in reading.chosen else [name for name in found if _is_unlabeled(name)]
    class_names = tuple(name for name in found if name not in without)
    if len(class_names) < 2:
        what = "all images are in one folder" if len(found) < 2 else "there is only one class folder"
        return _noted(plain, f"not labeled: {what}, {files.folder}{(*class_names, *found)[0]}/")
    layout = replace(plain, train=Part(files.names, _numbers(classes, class_names)), class_names=class_names)
    for name in without:
        note = f"{files.folder}{name}/ ({classes.count(name):,} images) is trained on without labels; as a class: "
        layout = _noted(layout, f"{note}data.dataset.train={files.folder[:-1] or '.'}")
    return layout


def _is_unlabeled(name: str) -> bool:
    known = part_name(name)
    return known.role == "unlabeled" and known.clear and not known.rest


def _with_unlabeled(layout: Layout, reading: Reading, folders: Sequence[_Files]) -> Layout:
    """Add images to the training part that have no label."""
    train = layout.train
    for files in folders:
        names, labels, at = train.names, train.labels, bisect_left(train.names, files.folder)
        if labels is not None:
            labels = torch.cat((labels[:at], torch.full((len(files.names),), -1), labels[at:]))
        train = Part([*names[:at], *files.names, *names[at:]], labels)
        note = f"{files.folder} ({len(files.names):,} images) is trained on too, without labels; to leave it out: "
        layout = _noted(layout, f"{note}data.dataset.train={reading.train[:-1]}")
    return replace(layout, train=train)


def _with_parts(layout: Layout, reading: Reading, parts: dict[Key, _Files]) -> Layout:
    """Add val and test; val alone is scored as test, unless a key names it."""
    found: dict[Key, Part] = {}
    for key, files in parts.items():
        part = Part(files.names) if layout.class_names is None else _like_train(files, layout.class_names)
        if part is not None:
            found[key] = part
        elif key in reading.chosen and files.classes() is not None:
            raise ValueError(f"data.dataset.{key}={files.folder[:-1]}: none of its folders is a class of train")
        else:
            layout = _noted(layout, f"{files.folder} is not used: it has no class folders like those of train")
    val, test = found.get("val"), found.get("test")
    if val is not None and test is None and "val" not in reading.chosen:
        note = "is taken as the test part, as there is no other; a tenth of train is held out for choices"
        return _noted(replace(layout, test=val), f"{parts['val'].folder} {note}")
    if val is not None:
        note = "is the held-out part: choices (best checkpoint, l2) are made on it, and it is never trained on"
        layout = _noted(layout, f"{parts['val'].folder} {note}")
    return replace(layout, val=val, test=test)


def _like_train(files: _Files, class_names: tuple[str, ...]) -> Part | None:
    """A part with labels; None when it has no class folder that train has.

    Raises:
        ValueError: it has some of train's classes, and others.
    """
    classes = files.classes()
    if classes is None or not set(classes) & set(class_names):
        return None
    strangers = sorted(set(classes) - set(class_names))
    if strangers:
        what = "a class" if len(strangers) == 1 else f"{len(strangers):,} classes"
        raise ValueError(
            f"{files.folder} has {what} that train does not have: {listed(strangers)}; rename or move these folders, "
            "add the classes to train, or ignore all class folders with data.dataset.labels=false"
        )
    return Part(files.names, _numbers(classes, class_names))


def _unused(folders: Iterable[str], used: Sequence[str]) -> str:
    """The folders of the first level with images in no part, as text."""
    left = [folder for folder in folders if not f"{folder}/".startswith(tuple(used))]
    tops = sorted({folder.split("/", 1)[0] for folder in left} - {""})
    loose = ["images next to the folders"] if "" in left else []
    return ", ".join([*([listed(tops)] if tops else []), *loose])


def _hold_aside(layout: Layout, seed: int) -> Layout:
    """Move a seeded fifth of the labeled training images to the test part."""
    names, labels = layout.train.names, layout.train.labels
    assert labels is not None
    aside = choose(len(names), labels, fraction=TEST_SHARE, seed=seed, stream=TEST_STREAM)
    is_test = torch.zeros(len(names), dtype=torch.bool)
    is_test[aside] = True
    train, test = (
        Part([names[i] for i in torch.nonzero(mask)[:, 0].tolist()], labels[mask]) for mask in (~is_test, is_test)
    )
    note = f"no labeled test part: a seeded fifth ({len(aside):,} images) is held aside as test"
    return _noted(replace(layout, train=train, test=test), note)
