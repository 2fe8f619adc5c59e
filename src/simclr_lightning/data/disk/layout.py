"""What the folders of a data set mean: the parts for training and for testing, and the classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simclr_lightning.data.images import TEST_STREAM, choose

TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first whose classes are train's is taken
TEST_SHARE = 0.2  # of a labelled folder without a test part


@dataclass(frozen=True)
class Part:
    """Images of one part: sorted names, and labels (n,) int64 or None."""

    names: list[str]
    labels: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """The parts of a data set, its class names (None without labels) and lines to tell the user."""

    train: Part
    test: Part | None
    class_names: tuple[str, ...] | None
    notes: tuple[str, ...]


def lay_out(names: list[str], *, labels: bool, seed: int) -> Layout:
    """The layout that relative file names show ("/" between their parts, sorted).

    With train/ and one of test/, val/, valid/ or validation/ (or train/ alone), those are the parts. Else
    every image is for training. A part is labelled when each of its images is in a folder and there are at
    least two folders; those of the first level are the classes. A labelled data set without a labelled test
    part gives a seeded fifth of its images, of every class its share.

    Args:
        names: relative file names.
        labels: False ignores the class folders.
        seed: chooses the fifth.

    Raises:
        ValueError: the classes of a test part are partly others than train's.
    """
    tops = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    candidates = [top for top in TEST_FOLDERS if top in tops]
    split = TRAIN_FOLDER in tops and (bool(candidates) or tops == {TRAIN_FOLDER})
    if not split:
        layout = _labelled(names, "", labels)
    else:
        layout = _labelled(_below(names, TRAIN_FOLDER), f"{TRAIN_FOLDER}/", labels)
        layout = _with_test(layout, {top: _below(names, top) for top in candidates})
        unused = sorted(tops - {TRAIN_FOLDER, *candidates})
        if unused:
            listed = ", ".join(f"{top}/" if top else "images beside train/" for top in unused[:5])
            layout = _noted(layout, f"not used, being neither train nor test: {listed}")
    if layout.train.labels is not None and layout.test is None:
        layout = _hold_aside(layout, seed)
    return layout


def _below(names: list[str], top: str) -> list[str]:
    return [name for name in names if name.startswith(f"{top}/")]


def _noted(layout: Layout, note: str) -> Layout:
    return replace(layout, notes=(*layout.notes, note))


def _classes(names: Sequence[str], prefix: str) -> list[str] | None:
    """The class of each name, or None when one of them lies directly in the part's folder."""
    cut = len(prefix)
    if any("/" not in name[cut:] for name in names):
        return None
    return [name[cut:].split("/", 1)[0] for name in names]


def _numbers(classes: list[str], class_names: tuple[str, ...]) -> Tensor:
    number = {name: index for index, name in enumerate(class_names)}
    return torch.tensor([number[name] for name in classes])


def _labelled(names: list[str], prefix: str, labels: bool) -> Layout:
    """All names as the training part, labelled if its folders say so."""
    plain = Layout(Part(names), None, None, ())
    if not labels:
        return plain
    classes = _classes(names, prefix)
    if classes is None:
        loose = next(name for name in names if "/" not in name[len(prefix) :])
        mixed = any("/" in name[len(prefix) :] for name in names)
        return _noted(plain, f"not labelled: {loose} is in no class folder") if mixed else plain
    class_names = tuple(sorted(set(classes)))
    if len(class_names) < 2:
        return _noted(plain, f"not labelled: all images are in one folder, {prefix}{class_names[0]}/")
    return replace(plain, train=Part(names, _numbers(classes, class_names)), class_names=class_names)


def _with_test(layout: Layout, candidates: dict[str, list[str]]) -> Layout:
    """Take the first candidate that is labelled with train's classes; without labels, the first."""
    known = layout.class_names
    if known is None:
        first = next(iter(candidates.values()), None)
        return replace(layout, test=None if first is None else Part(first))
    for top, names in candidates.items():
        classes = _classes(names, f"{top}/")
        if classes is None or not set(classes) & set(known):
            layout = _noted(layout, f"{top}/ is not used: it has no class folders like those of train/")
            continue
        strangers = sorted(set(classes) - set(known))
        if strangers:
            raise ValueError(
                f"{top}/{strangers[0]}/ is a class that train/ does not have; "
                "move its images or add the class to train/"
            )
        return replace(layout, test=Part(names, _numbers(classes, known)))
    return layout


def _hold_aside(layout: Layout, seed: int) -> Layout:
    """Move a seeded fifth of the labelled training images to the test part."""
    names, labels = layout.train.names, layout.train.labels
    assert labels is not None
    aside = choose(len(names), labels, fraction=TEST_SHARE, seed=seed, stream=TEST_STREAM)
    is_test = torch.zeros(len(names), dtype=torch.bool)
    is_test[aside] = True
    train, test = (
        Part([names[i] for i in torch.nonzero(mask)[:, 0].tolist()], labels[mask]) for mask in (~is_test, is_test)
    )
    note = f"no labelled test part: a seeded fifth ({len(aside):,} images) is held aside as test"
    return _noted(replace(layout, train=train, test=test), note)
