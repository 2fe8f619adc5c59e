"""The photographs' patches: what is in them, what is not shared, and that they never change."""

import itertools
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simclr_lightning.data import photos as exported
from simclr_lightning.data.photographs import PICTURES, SHORT_SIDE, columns, corners, photograph, photos

SIZE = 32
CORNER = re.compile(r"(train|test)/(\w+)/\d{4}-x(\d+)-y(\d+)")


@pytest.fixture(scope="module")
def splits():
    return photos()


@pytest.fixture(scope="module")
def pictures():
    return {name: photograph(name) for name in PICTURES}


def places(images):
    """(class name, x, y) of every patch, from its name."""
    found = [CORNER.fullmatch(name) for name in images.names]
    return [(match[2], int(match[3]), int(match[4])) for match in found]


def by_part(splits):
    """Class name -> part -> corners."""
    held = set(splits.held_out.tolist())
    parts = {name: {"train": [], "held_out": [], "test": []} for name in PICTURES}
    for index, (name, x, y) in enumerate(places(splits.train)):
        parts[name]["held_out" if index in held else "train"].append((x, y))
    for name, x, y in places(splits.test):
        parts[name]["test"].append((x, y))
    return parts


def test_counts_and_labels(splits):
    assert exported is photos
    assert len(PICTURES) == 18
    assert splits.class_names == tuple(PICTURES)
    assert len(splits.train) == 18 * 300
    assert len(splits.test) == 18 * 100
    assert splits.train.labels.bincount().tolist() == [300] * 18
    assert splits.test.labels.bincount().tolist() == [100] * 18
    assert splits.train.labels[splits.held_out].bincount().tolist() == [30] * 18
    assert splits.held_out.dtype == torch.int64
    assert torch.equal(splits.held_out, splits.held_out.unique())  # sorted, none twice
    assert splits.train.tensor.shape == (5400, 3, SIZE, SIZE)
    assert splits.train.tensor.dtype == torch.uint8
    assert "page and text are enlarged" in " ".join(splits.notes)


def test_a_patch_is_the_photograph_at_its_corner_and_its_label_is_the_photograph(splits, pictures):
    for images in (splits.train, splits.test):
        for index in range(0, len(images), 37):
            name, x, y = places(images)[index]
            expected = pictures[name][:, y : y + SIZE, x : x + SIZE]
            assert torch.equal(images.load(index), expected)
            assert splits.class_names[images.labels[index]] == name


def test_no_pixel_is_in_two_parts(splits, pictures):
    for name, parts in by_part(splits).items():
        masks = {}
        for part, found in parts.items():
            masks[part] = torch.zeros(pictures[name].shape[1:], dtype=torch.bool)
            for x, y in found:
                masks[part][y : y + SIZE, x : x + SIZE] = True
        for one, other in itertools.combinations(masks.values(), 2):
            assert not (one & other).any(), name
        line = 0.7 * pictures[name].shape[2]
        columns_of = {part: mask.any(0).nonzero() for part, mask in masks.items()}
        assert columns_of["train"].max() < line - 1
        assert columns_of["held_out"].max() < columns_of["train"].min() - 1
        assert columns_of["test"].min() > line + 1


def test_patches_of_a_part_are_all_different_places(splits):
    for parts in by_part(splits).values():
        assert all(len(set(found)) == len(found) for found in parts.values())


@pytest.mark.parametrize("name", ["page", "text", "retina", "coffee"])
def test_resizing_leaks_no_original_pixel_from_one_part_to_another(name, monkeypatch):
    """Change the original left of the test part's first column: the test part stays as it is, and so on."""
    original = photograph.__globals__["read_image"]
    clean = photograph(name)
    parts = columns(clean.shape[2], size=SIZE)
    for left, right in ((parts.train, parts.test), (parts.held_out, parts.train)):
        seam = (left[1] + right[0]) / 2 / clean.shape[2]

        def changed(path, *, keep_left, seam=seam):
            image = original(path).clone()
            at = round(seam * image.shape[2])
            (image[:, :, at:] if keep_left else image[:, :, :at]).bitwise_xor_(torch.tensor(255, dtype=torch.uint8))
            return image

        for keep_left in (True, False):
            monkeypatch.setitem(
                photograph.__globals__,
                "read_image",
                lambda path, keep_left=keep_left, changed=changed: changed(path, keep_left=keep_left),
            )
            other = photograph(name)
            assert torch.equal(clean[:, :, : left[1]], other[:, :, : left[1]]) == keep_left
            assert torch.equal(clean[:, :, right[0] :], other[:, :, right[0] :]) != keep_left


def test_photographs_have_256_px_on_the_short_side_and_their_own_aspect(pictures):
    for name, (package, file) in PICTURES.items():
        path = Path(__import__(package).__file__).parent / file
        with Image.open(path) as original:
            width, height = original.size
        shape = pictures[name].shape
        assert min(shape[1:]) == SHORT_SIDE
        assert shape[2] / shape[1] == pytest.approx(width / height, abs=1 / SHORT_SIDE)


def test_reducing_is_antialiased(pictures):
    """The retina is reduced 5.5 times: each pixel is near the mean of those it covers, not one of them."""
    path = Path(__import__("skimage").__file__).parent / PICTURES["retina"][1]
    with Image.open(path) as image:
        box = np.asarray(image.resize((SHORT_SIDE, SHORT_SIDE), Image.Resampling.BOX)).astype(int)
        nearest = np.asarray(image.resize((SHORT_SIDE, SHORT_SIDE), Image.Resampling.NEAREST)).astype(int)
    ours = pictures["retina"].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - box).mean() < 0.7 * np.abs(nearest - box).mean()


def test_grey_photographs_have_three_equal_channels(pictures):
    for name in ("brick", "camera", "coins", "grass", "gravel", "moon", "page", "text"):
        assert torch.equal(pictures[name][0], pictures[name][1])
        assert torch.equal(pictures[name][0], pictures[name][2])
    assert not torch.equal(pictures["cat"][0], pictures["cat"][2])


def test_the_same_seed_gives_the_same_patches_and_another_seed_others(splits):
    state = torch.random.get_rng_state()
    again, other = photos(seed=0), photos(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.fingerprint == splits.fingerprint
    assert torch.equal(again.train.tensor, splits.train.tensor)
    assert torch.equal(again.held_out, splits.held_out)
    assert other.fingerprint != splits.fingerprint
    assert not torch.equal(other.test.tensor, splits.test.tensor)


def test_counts_and_size_can_be_chosen():
    splits = photos(size=64, train_per_class=20, test_per_class=7)
    assert splits.train.tensor.shape == (360, 3, 64, 64)
    assert splits.test.tensor.shape == (126, 3, 64, 64)
    assert splits.train.labels[splits.held_out].bincount().tolist() == [2] * 18


def test_more_patches_a_class_keep_the_first_ones():
    few, many = photos(train_per_class=10, test_per_class=3), photos(train_per_class=10, test_per_class=9)
    assert places(few.test)[:3] == places(many.test)[:3]


def test_places_are_spread_over_the_whole_part():
    found = corners((48, 175), 256, size=32, count=2000, seed=0, stream=-1000)
    x, y = found.T
    assert (x.min(), x.max(), y.min(), y.max()) == (48, 143, 0, 224)
    # The mean of 2,000 uniform numbers over a range r has a standard deviation of r / sqrt(12 * 2000).
    assert abs(x.double().mean() - 95.5) < 4 * 96 / (12 * 2000) ** 0.5
    assert abs(y.double().mean() - 112) < 4 * 225 / (12 * 2000) ** 0.5


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    photos(train_per_class=10, test_per_class=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "/somewhere"}, "data=folder"),
        ({"size": 65}, "data.dataset.size=65"),
        ({"size": 7}, "data.dataset.size=7"),
        ({"train_per_class": 9}, "data.dataset.train_per_class=9"),
        ({"test_per_class": 0}, "data.dataset.test_per_class=0"),
        ({"size": 64, "test_per_class": 2000}, "lower data.dataset.train_per_class"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        photos(**options)


def test_a_missing_picture_names_the_package_to_reinstall(monkeypatch):
    monkeypatch.setitem(PICTURES, "cat", ("skimage", "data/nowhere.png"))
    with pytest.raises(ValueError, match="pip install --force-reinstall scikit-image"):
        photograph("cat")
