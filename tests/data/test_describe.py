"""The lines that every run prints about its images: parts, counts, class names, and classes that a part lacks."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SMALL, small_images
from simclr_lightning.data import Splits, TensorImages, ViewsDataModule, describe, described, folder, photos


def splits(train: list[int], held_out: list[int], test: list[int] | None, classes: int, val: int = 0) -> Splits:
    def images(labels: list[int]) -> TensorImages:
        return TensorImages(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), torch.tensor(labels))

    names = tuple(f"c{number}" for number in range(classes))
    tested = None if test is None else images(test)
    return Splits(images(train), tested, torch.tensor(held_out, dtype=torch.int64), names, "", val_images=val)


def test_the_example_in_the_documentation_holds() -> None:
    assert doctest.testmod(describe).failed == 0


def test_parts_classes_and_counts() -> None:
    assert described(splits([0, 1, 0, 1, -1], [1], [1, 0], classes=2)) == [
        "train: 5 images, 4 of them labeled, in 2 classes; 1 held out for choices (best checkpoint, l2)",
        "test: 2 images in 2 classes",
        "classes: c0, c1",
    ]
    assert described(splits([0, 1, 0, 1, 0], [3, 4], [1, 0], classes=2, val=2)) == [
        "train: 3 images in 2 classes",
        "val: 2 images in 2 classes; held out for choices",
        "test: 2 images in 2 classes",
        "classes: c0, c1",
    ]
    plain = TensorImages(torch.zeros(1200, 3, 2, 2, dtype=torch.uint8))
    assert described(Splits(plain, None, torch.arange(0, 1200, 10), None, "")) == [
        "train: 1,200 images without labels; 120 held out for choices (best checkpoint, l2)"
    ]


def test_long_lists_of_classes_are_cut() -> None:
    lines = described(splits([*range(1000), *range(1000)], [], [*range(1000)], classes=1000))
    assert lines[2] == "classes: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 990 more"


def test_classes_of_test_that_nothing_can_be_learned_of_are_named() -> None:
    """Class 2 is not in train at all, class 1 only in its held-out part."""
    lines = described(splits([0, 0, 1, 3], [2], [0, 1, 2, 2, 0], classes=4))
    assert lines[3:] == [
        "test has 2 classes that the images of the kNN bank and the probes lack: c1, c2; "
        "3 of its 5 images can never be predicted right",
        "test has no image of 1 class of train: c3",
        "the held-out part has 1 class that the images of the kNN bank and the probes lack: c1; "
        "1 of its 1 images can never be predicted right",
    ]


def test_an_image_of_each_class_is_not_silently_scored_as_wrong(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / f"c{number:02d}" / "1.png"
        path.parent.mkdir()
        Image.fromarray(small_images(12)[0][number]).save(path)
    data = ViewsDataModule(folder, path=tmp_path, batch_size=4, recipe=SMALL)
    lost = {name.split("/")[0] for name in data.load().test.names}
    (line,) = [line for line in data.load().notes if line.startswith("test has 2 classes")]
    assert line.endswith(f"lack: {', '.join(sorted(lost))}; 2 of its 2 images can never be predicted right")


def test_every_source_is_described_when_its_images_are_loaded() -> None:
    data = ViewsDataModule(lambda path: photos(), batch_size=4, recipe=SMALL)
    notes = data.load().notes
    assert notes[:2] == (
        "train: 5,400 images in 18 classes; 540 held out for choices (best checkpoint, l2)",
        "test: 1,800 images in 18 classes",
    )
    assert notes[2].startswith("classes: astronaut, brick, camera, cat, ")
    assert notes[2].endswith(" and 8 more")
    assert notes[3:] == photos().notes
    assert data.load().fingerprint == photos().fingerprint


@pytest.mark.parametrize("labels", [True, False])
def test_a_run_prints_and_logs_the_description(
    labels: bool, simclr: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, classes = small_images(60)
    arrays = {"train_images": images[:40], "test_images": images[40:]}
    if labels:
        arrays |= {"train_labels": classes[:40], "test_labels": np.minimum(classes[40:] + 1, 3)}
    np.savez("x.npz", **arrays)
    words = ("data=array", "data.path=x.npz", "data.batch_size=16", "views.size=8", "model.encoder.width=0.125")
    assert simclr("train", *words, "trainer.accelerator=cpu", "trainer.max_steps=1", "hydra.run.dir=run") == 0
    out = capsys.readouterr().out
    if labels:
        said = [
            "train: 40 images in 3 classes; 4 held out for choices (best checkpoint, l2)",
            "test: 20 images in 3 classes",
            "classes: 0, 1, 2, 3",
            "test has 1 class that the images of the kNN bank and the probes lack: 3; "
            f"{int((classes[40:] == 2).sum())} of its 20 images can never be predicted right",
            "test has no image of 1 class of train: 0",
        ]
    else:
        said = [
            "train: 40 images without labels; 4 held out for choices (best checkpoint, l2)",
            "test: 20 images without labels",
        ]
    assert out.splitlines()[: len(said)] == said
    assert all(line in Path("run/train.log").read_text() for line in said)
