"""The key data.dataset.full_scale: one value of white for all deep files of a folder, in training and in packing."""

import numpy as np
import pytest
from PIL import Image

from simclr_lightning.data import ImageError, folder, pack, packed


@pytest.fixture
def deep(tmp_path):
    """12 images of 12 bits in 16: image i is all 300 i + 100."""
    (tmp_path / "in").mkdir()
    for number in range(12):
        values = np.full((8, 8), 300 * number + 100, dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "in" / f"{number:02d}.{'png' if number % 2 else 'tif'}")
    return tmp_path / "in"


def brightness(images):
    return {name[:2]: int(images.load(index)[0, 0, 0]) for index, name in enumerate(images.names)}


EXPECTED = {f"{number:02d}": int((300 * number + 100) / 4095 * 255 + 0.5) for number in range(12)}


@pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
def test_a_folder_of_12_bit_images_is_read_with_the_scale_of_all_of_them(deep, on_corrupt):
    assert brightness(folder(deep, full_scale=4095, on_corrupt=on_corrupt).train) == EXPECTED


def test_without_it_the_error_names_the_file_and_the_key(deep):
    train = folder(deep).train
    with pytest.raises(ImageError, match=r"00\.tif: 16-bit TIFF: .* almost black; set data\.dataset\.full_scale to"):
        train.load(0)
    with pytest.raises(
        ImageError, match=r"(?s)more than data\.dataset\.max_skipped=3 files.*data\.dataset\.full_scale"
    ):
        folder(deep, on_corrupt="skip", max_skipped=3)


def test_packing_takes_it_too(deep, tmp_path):
    with pytest.raises(ImageError, match=r"almost black; set full_scale to"):
        pack(deep, tmp_path / "out")
    pack(deep, tmp_path / "out", full_scale=4095)
    found = brightness(packed(tmp_path / "out").train)
    assert found.keys() == EXPECTED.keys()
    assert all(abs(found[name] - EXPECTED[name]) <= 1 for name in EXPECTED), "JPEG of one color"


@pytest.mark.parametrize("full_scale", [0, -5])
def test_it_is_above_0(deep, full_scale):
    with pytest.raises(ValueError, match=r"data\.dataset\.full_scale=.*: must be above 0"):
        folder(deep, full_scale=full_scale)
