"""Images so long that both views are the same box are counted: the oracle is the sampling of crops itself."""

from __future__ import annotations

import doctest
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SMALL
from simclr_lightning.data import FolderImages, Splits, TensorImages, ViewsDataModule, aspects, folder, pack, packed
from simclr_lightning.data.aspects import long_images, one_box_chance
from simclr_lightning.views import ViewRecipe, recipe
from simclr_lightning.views.sampling import sample_crops

RECIPES = [
    SMALL,
    ViewRecipe(area=(0.2, 1.0)),
    ViewRecipe(area=(0.5, 0.6), aspect=(1.0, 1.0)),
    ViewRecipe(aspect=(0.2, 2.0)),
]


def test_the_example_in_the_documentation_holds() -> None:
    assert doctest.testmod(aspects).failed == 0


@pytest.mark.parametrize("made", RECIPES)
@pytest.mark.parametrize("size", [(40, 60), (40, 300), (400, 40), (40, 520), (600, 40), (40, 680), (1, 9), (30, 31)])
def test_the_chance_of_one_box_is_that_of_the_draws(size: tuple[int, int], made: ViewRecipe) -> None:
    n = 4000
    height, width = size
    box = sample_crops(height, width, seed=1, epoch=0, indices=torch.arange(n), recipe=made).box
    low, high = made.aspect  # torchvision's rule for the box when no crop fits
    ratio = width / height
    h = max(1, round(width / low)) if ratio < low else height
    w = max(1, round(height * high)) if ratio > high else width
    centered = torch.tensor([(height - h) // 2, (width - w) // 2, h, w])
    is_centered = (box == centered).all(dim=1)
    seen = (is_centered[:n] & is_centered[n:]).double().mean().item()
    chance = one_box_chance(height, width, made)
    # Four standard deviations of a share of 4,000, and a crop that fits may be the centered box by chance.
    assert abs(seen - chance) < 4 * math.sqrt(chance * (1 - chance) / n) + 0.02


def image(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(path)


def test_they_are_counted_in_a_folder_and_in_a_packed_folder(tmp_path: Path) -> None:
    for number in range(6):
        image(tmp_path / f"images/long{number}.png", 680 + number, 40)
        image(tmp_path / f"images/tall{number}.jpg", 40, 679)
        image(tmp_path / f"images/fine{number}.png", 400, 40)
    (tmp_path / "images/ok.png").write_bytes((tmp_path / "images/fine0.png").read_bytes())
    pack(tmp_path / "images", tmp_path / "out")
    line = (
        "12 of 19 images looked into are so long that both views are nearly always cut from the same box (e.g. "
        "long5.png, 685 x 40 pixels): cut them into shorter pieces, or lower the first number of views.area (0.08)"
    )
    for source, path in ((folder, "images"), (packed, "out")):
        data = ViewsDataModule(source, path=tmp_path / path, batch_size=4, recipe=SMALL)
        assert data.load().notes[-1] == line
        wider = ViewsDataModule(source, path=tmp_path / path, batch_size=4, recipe=replace(SMALL, area=(0.01, 1)))
        assert not any("so long" in note for note in wider.load().notes)
        centered = ViewsDataModule(source, path=tmp_path / path, batch_size=4, recipe=recipe("none"))
        assert not any("so long" in note for note in centered.load().notes)


def test_images_in_memory_are_all_of_one_size(tmp_path: Path) -> None:
    images = TensorImages(torch.zeros(10, 3, 4, 80, dtype=torch.uint8))
    splits = Splits(images, None, torch.tensor([0]), None, "")
    data = ViewsDataModule(lambda path: splits, batch_size=4, recipe=SMALL)
    assert data.load().notes[-1].startswith("10 of 10 images looked into are so long")


def test_a_large_folder_is_looked_into_in_part_and_broken_files_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        image(tmp_path / f"{number:02d}.png", 800, 40)
    images = folder(tmp_path).train
    (tmp_path / "00.png").write_bytes(b"damaged")
    monkeypatch.setattr(aspects, "LOOKED_INTO", 5)
    assert long_images(images, SMALL, 20)[0].startswith("4 of 4 images")
    assert long_images(images, SMALL, 4)[0].startswith("3 of 3 images")


def test_two_thousand_headers_take_a_moment(tmp_path: Path) -> None:
    image(tmp_path / "0.jpg", 600, 400)
    for number in range(1, 2000):
        (tmp_path / f"{number}.jpg").hardlink_to(tmp_path / "0.jpg")
    images = FolderImages(tmp_path, [f"{number}.jpg" for number in range(2000)])
    started = time.process_time()
    assert long_images(images, SMALL, 2000) == []
    assert time.process_time() - started < 5
