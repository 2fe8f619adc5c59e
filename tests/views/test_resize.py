"""Compare crops and resizing with Pillow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made_views import KEYS, photographs, pil_crop
from PIL import Image

from simclr_lightning.views import (
    crop_views,
    recipe,
    resize,
)
from simclr_lightning.views.sampling import Crops, sample_crops


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (28, 20, 32), (32, 32, 9), (96, 120, 64)])
def test_crops_are_within_one_level_of_pillows(name: Any, height: int, width: int, size: int) -> None:
    n = 200 if size <= 32 else 30
    images = photographs(n, height, width)
    chosen = replace(recipe("simclr_cifar"), size=size, interpolation=name)
    crops = sample_crops(height, width, indices=torch.arange(n), recipe=chosen, **KEYS)
    got = torch.stack([crop_views(image, index=i, recipe=chosen, **KEYS) for i, image in enumerate(images)]).short()
    assert got.shape == (n, 2, 3, size, size)
    want = torch.stack(
        [
            pil_crop(images[row % n], crops.box[row].tolist(), bool(crops.flip[row]), size, name)
            for row in range(2 * n)
        ]
    ).unflatten(0, (2, n)).transpose(0, 1).short()  # fmt: skip
    off = (got - want).abs()
    assert off.float().mean().item() < 0.2
    # torch's kernel rounds between the passes, as Pillow does, but has coarser weights: rarely 2 levels.
    assert (off > 1).double().mean().item() <= (0 if size != 64 else 2e-5)
    assert off.max().item() <= 2


def test_a_photograph_is_cropped_to_224_as_pillow_does() -> None:
    image = photographs(1, 375, 490)[0]
    chosen = recipe("simclr")
    off = []
    for index in range(12):
        crops = sample_crops(375, 490, indices=torch.tensor([index]), recipe=chosen, **KEYS)
        got = crop_views(image, index=index, recipe=chosen, **KEYS)
        for view in range(2):
            want = pil_crop(image, crops.box[view].tolist(), bool(crops.flip[view]), 224)
            off.append((got[view].short() - want.short()).abs())
    off_all = torch.stack(off)
    assert off_all.max().item() <= 2
    assert (off_all > 1).double().mean().item() < 2e-5
    assert off_all.float().mean().item() < 0.02


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size_in", "length", "size_out"), [(32, 20, 32), (64, 64, 24), (300, 211, 50), (5, 1, 8)])
def test_resize_weights_are_pillows_and_exact(name: str, size_in: int, length: int, size_out: int) -> None:
    start = (size_in - length) // 2
    got = resize.resize_weights(torch.tensor([start]), torch.tensor([length]), size_in, size_out, name, 15)[0]
    assert torch.equal(got.sum(dim=1), torch.ones(size_out, dtype=torch.float64))
    assert torch.equal(got, (got * 2**15).round() / 2**15)
    # Pillow's float resize of an impulse at one sample is the column of its filter matrix for that sample.
    for at in range(length):
        line = np.zeros((1, length), dtype=np.float32)
        line[0, at] = 1.0
        resized = Image.fromarray(line).resize((size_out, 1), Image.Resampling[name.upper()])
        column = np.asarray(resized, dtype=np.float64)[0]
        assert np.abs(got[:, start + at].numpy() - column).max() < 2e-4
    assert (got[:, :start] == 0).all()
    assert (got[:, start + length :] == 0).all()


def test_sums_in_float32_and_float64_and_any_order_agree_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 64
    images = photographs(n, 32, 32)
    images[0], images[1] = 255, 0
    images[2:12] = torch.randint(0, 2, (10, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 255
    crops = sample_crops(32, 32, indices=torch.arange(n), recipe=recipe("simclr_cifar"), **KEYS)
    plain = resize.resize_crops(images, crops, 32, "bicubic")
    assert (plain[0] == 255).all()  # a constant image stays constant
    assert (plain[1] == 0).all()
    upside = Crops(torch.stack([32 - crops.box[:, 0] - crops.box[:, 2], *crops.box.T[1:]], dim=1), crops.flip)
    mirrored = resize.resize_crops(images.flip(2), upside, 32, "bicubic").flip(3)
    # In the mirrored image the sums run backward; only the rounding error, added to one of equal weights, may differ.
    assert (mirrored.short() - plain.short()).abs().max() <= 1
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(resize.resize_crops(images, crops, 32, "bicubic"), plain)
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resize.resize_crops(images, crops, 32, "bicubic"), plain)
    monkeypatch.setattr(resize, "_has_table", lambda size_in, size_out: False)  # matrix products, as on other devices
    products = torch.empty_like(plain)
    resize._resize_batch(images, crops.box.unflatten(0, (2, n)), crops.flip.unflatten(0, (2, n)), "bicubic", products)
    assert torch.equal(products, plain)


def test_products_resize_large_images_too_as_other_devices_do() -> None:
    n = 12
    images = photographs(n, 96, 120)
    crops = sample_crops(96, 120, indices=torch.arange(n), recipe=recipe("simclr"), **KEYS)
    singly = resize.resize_crops(images, crops, 64, "bicubic")
    products = torch.empty_like(singly)
    resize._resize_batch(images, crops.box.unflatten(0, (2, n)), crops.flip.unflatten(0, (2, n)), "bicubic", products)
    off = (products.short() - singly.short()).abs()
    assert off.max().item() <= 1
    assert off.float().mean().item() < 0.25  # the integer kernel rounds to whole levels between its passes


@pytest.mark.parametrize(("size_in", "size_out"), [(32, 32), (28, 32), (40, 9), (96, 64)])
@pytest.mark.parametrize(("bits", "largest"), [(resize._ACROSS_BITS, 255), (resize._DOWN_BITS, 255 * resize._BETWEEN)])
def test_every_sum_of_the_products_fits_24_bits(size_in: int, size_out: int, bits: int, largest: float) -> None:
    length = torch.arange(1, size_in + 1)
    for start in (torch.zeros_like(length), size_in - length, (size_in - length) // 2):
        w = resize.resize_weights(start, length, size_in, size_out, "bicubic", bits)
        assert (w.abs().sum(dim=2).max() * largest * 2**bits).item() <= 2**24
