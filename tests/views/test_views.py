"""Compare views with Pillow and torchvision on the same parameters, and their statistics with the recipe."""

import math
import random
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from scipy import stats
from skimage import data
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import RandomResizedCrop

from simclr_lightning.views import (
    ViewRecipe,
    centre_view,
    crop_views,
    finish,
    finish_views,
    kernels,
    make_views,
    recipe,
    resize,
)
from simclr_lightning.views.finish import finish_rows
from simclr_lightning.views.sampling import Colors, Crops, sample_colors, sample_crops, sample_crops_of_one

KEYS = {"seed": 11, "epoch": 3}
DRAWS = 20_000
LEVEL = 1 / 255


def photographs(n: int, height: int, width: int) -> Tensor:
    """Cut n patches of two photographs, (n, 3, height, width) uint8."""
    sources = [torch.from_numpy(x.copy()).permute(2, 0, 1) for x in (data.astronaut(), data.coffee()[:, :500])]
    draw = random.Random(n * height + width)
    out = []
    for i in range(n):
        source = sources[i % 2]
        top, left = draw.randrange(source.shape[1] - height), draw.randrange(source.shape[2] - width)
        out.append(source[:, top : top + height, left : left + width])
    return torch.stack(out)


def colors(rows: int, **fields: Tensor) -> Colors:
    """Return parameters that leave all rows unchanged, except for the given fields."""
    no = torch.zeros(rows, dtype=torch.bool)
    factor = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(rows, 1)
    plain = {"jitter": no, "grey": no, "solarise": no, "factor": factor, "sigma": torch.zeros(rows).double()}
    return Colors(**({"order": torch.arange(4).repeat(rows, 1)} | plain | fields))


def reference_finish(crop: Tensor, c: Colors, row: int, chosen: ViewRecipe) -> Tensor:
    """Turn one crop (3, S, S) into a view with torchvision's functional operations."""
    x = crop.float() / 255
    if c.jitter[row]:
        brightness, contrast, saturation, hue = c.factor[row].tolist()
        for operation in c.order[row].tolist():
            if operation == 0 and chosen.brightness == "add":
                x = (x + brightness).clamp(0, 1)
            elif operation == 0:
                x = TF.adjust_brightness(x, brightness)
            elif operation == 1:
                x = TF.adjust_contrast(x, contrast)
            elif operation == 2:
                x = TF.adjust_saturation(x, saturation)
            else:
                x = TF.adjust_hue(x, hue).clamp(0, 1)
    if c.grey[row]:
        x = TF.rgb_to_grayscale(x, 3)
    if c.sigma[row] > 0:
        x = TF.gaussian_blur(x, [2 * chosen.blur_radius + 1] * 2, [c.sigma[row].item()] * 2)
    return TF.solarize(x, 0.5) if c.solarise[row] else x


def pil_crop(image: Tensor, box: list[int], flip: bool, size: int, filter_name: str = "bicubic") -> Tensor:
    """Crop, resize and flip with Pillow, (3, size, size) uint8."""
    top, left, h, w = box
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + w, top + h))
    # Across, then down, as in older versions of Pillow; newer ones choose the order by cost. Where the filter exceeds
    # black or white, the two orders differ by several levels, since each pass clips.
    for shape in ((size, h), (size, size)):
        picture = picture.resize(shape, Image.Resampling[filter_name.upper()])
    out = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    return out.flip(2) if flip else out


# ---------------------------------------------------------------- recipes


def test_named_recipes_are_the_papers() -> None:
    simclr = recipe("simclr")
    assert simclr == ViewRecipe(
        size=224,
        area=(0.08, 1.0),
        aspect=(3 / 4, 4 / 3),
        interpolation="bicubic",
        flip=0.5,
        jitter=0.8,
        strength=1.0,
        brightness="multiply",
        grey=0.2,
        blur=0.5,
        blur_sigma=(0.1, 2.0),
        blur_kernel=0.1,
        solarise=0.0,
    )
    assert 2 * simclr.blur_radius + 1 == 23
    assert recipe("simclr_cifar") == replace(simclr, size=32, strength=0.5, blur=0.0)
    assert recipe("crop_flip") == replace(simclr, jitter=0.0, grey=0.0, blur=0.0)
    with pytest.raises(ValueError, match="simclr, simclr_cifar, crop_flip, none"):
        recipe("simclr2")


@pytest.mark.parametrize(("size", "kernel"), [(224, 23), (32, 3), (96, 9), (160, 17), (10, 1), (9, 1)])
def test_blur_kernel_is_a_tenth_of_the_side_made_odd(size: int, kernel: int) -> None:
    assert 2 * ViewRecipe(size=size).blur_radius + 1 == kernel


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", 32.0),
        ("size", True),
        ("crop", "left"),
        ("area", (0.0, 1.0)),
        ("area", (0.5, 1.1)),
        ("area", (0.9, 0.1)),
        ("area", 0.5),
        ("area", (0.1, 0.5, 1.0)),
        ("aspect", (0.0, 1.0)),
        ("aspect", (1.0, float("inf"))),
        ("interpolation", "nearest"),
        ("flip", 1.5),
        ("jitter", -0.1),
        ("strength", 3.0),
        ("strength", float("nan")),
        ("brightness", "divide"),
        ("grey", "0.2"),
        ("blur", True),
        ("blur_sigma", (0.0, 2.0)),
        ("blur_sigma", (2.0, 0.1)),
        ("blur_kernel", 2.0),
        ("solarise", 2),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, value: object) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=rf"views\.{field} must be"):
        ViewRecipe(**settings)


def test_a_list_from_a_config_becomes_a_tuple() -> None:
    area: Any = [0.2, 1]
    assert ViewRecipe(area=area).area == (0.2, 1.0)
    assert hash(ViewRecipe(area=area)) == hash(ViewRecipe(area=(0.2, 1.0)))


# ---------------------------------------------------------------- statistics of the parameters


@pytest.mark.parametrize(("height", "width"), [(375, 500), (32, 32), (40, 200)])
def test_crop_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    crops = sample_crops(height, width, indices=torch.arange(DRAWS // 2), recipe=recipe("simclr"), **KEYS)
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    scale, ratio = [0.08, 1.0], [3 / 4, 4 / 3]
    want = np.array([RandomResizedCrop.get_params(blank, scale, ratio) for _ in range(DRAWS // 2)]).T
    got = crops.box.numpy().T
    assert got.shape == (4, DRAWS)
    assert (got[:2] >= 0).all()
    assert (got[2:] >= 1).all()
    assert (got[0] + got[2] <= height).all()
    assert (got[1] + got[3] <= width).all()
    area, aspect = (lambda box: box[2] * box[3]), (lambda box: box[3] / box[2])
    for of in (area, aspect, lambda box: box[0], lambda box: box[1]):
        assert stats.ks_2samp(of(got), of(want)).pvalue > 1e-3


def test_area_and_log_aspect_are_uniform_where_every_box_fits() -> None:
    chosen = replace(recipe("simclr"), area=(0.08, 0.5), aspect=(0.5, 2.0))
    crops = sample_crops(2000, 2000, indices=torch.arange(DRAWS // 2), recipe=chosen, **KEYS)
    _, _, h, w = crops.box.double().numpy().T
    assert stats.kstest(h * w / 2000**2, "uniform", args=(0.08, 0.42)).pvalue > 1e-3
    log_aspect = np.log(w / h)
    assert stats.kstest(log_aspect, "uniform", args=(math.log(0.5), math.log(4))).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width", "box"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))])
def test_when_ten_tries_fail_the_box_is_the_largest_centered_one(height: int, width: int, box: tuple[int, ...]) -> None:
    chosen = replace(recipe("simclr"), area=(0.9, 1.0))
    crops = sample_crops(height, width, indices=torch.arange(100), recipe=chosen, **KEYS)
    assert (crops.box == torch.tensor(box)).all()
    square = sample_crops(7, 7, indices=torch.arange(9), recipe=replace(chosen, aspect=(3.0, 3.0)), **KEYS)
    assert (square.box == torch.tensor([2, 0, 2, 7])).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (33, 31), (10, 90)])
def test_one_image_draws_the_box_it_has_in_a_batch(height: int, width: int) -> None:
    n = 1500
    batch = sample_crops(height, width, indices=torch.arange(n), recipe=recipe("simclr"), **KEYS)
    for i in range(n):
        one = sample_crops_of_one(height, width, index=i, recipe=recipe("simclr"), **KEYS)
        assert torch.equal(one.box, batch.box[i::n])
        assert torch.equal(one.flip, batch.flip[i::n])


@pytest.mark.parametrize("strength", [1.0, 0.5, 1.5])
def test_jitter_factors_and_orders_follow_the_recipe(strength: float) -> None:
    chosen = replace(recipe("simclr"), strength=strength)
    c = sample_colors(indices=torch.arange(DRAWS // 2), recipe=chosen, **KEYS)
    low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
    for operation in range(3):
        assert stats.kstest(c.factor[:, operation].numpy(), "uniform", args=(low, high - low)).pvalue > 1e-3
    turn = 0.2 * strength
    assert stats.kstest(c.factor[:, 3].numpy(), "uniform", args=(-turn, 2 * turn)).pvalue > 1e-3
    number = (c.order * 4 ** torch.arange(4)).sum(dim=1)
    counts = number.unique(return_counts=True)[1]
    assert len(counts) == 24  # all 24 orders appear, equally often
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_added_brightness_is_centered_on_zero() -> None:
    chosen = replace(recipe("simclr"), brightness="add", strength=0.5)
    c = sample_colors(indices=torch.arange(DRAWS // 2), recipe=chosen, **KEYS)
    assert stats.kstest(c.factor[:, 0].numpy(), "uniform", args=(-0.4, 0.8)).pvalue > 1e-3


def test_rates_and_sigmas_follow_the_recipe_independently() -> None:
    chosen = replace(recipe("simclr"), solarise=0.3)
    indices = torch.arange(DRAWS // 2)
    c = sample_colors(indices=indices, recipe=chosen, **KEYS)
    flip = sample_crops(100, 100, indices=indices, recipe=chosen, **KEYS).flip
    happens = {"flip": flip, "jitter": c.jitter, "grey": c.grey, "blur": c.sigma > 0, "solarise": c.solarise}
    for name, flags in happens.items():
        p = getattr(chosen, name)
        assert stats.binomtest(int(flags.sum()), DRAWS, p).pvalue > 1e-3, name
    together = torch.stack([*happens.values(), *c.factor.T]).double()
    together = torch.cat([together[:, : DRAWS // 2], together[:, DRAWS // 2 :]])  # also between the views of an image
    correlation = torch.corrcoef(together) - torch.eye(len(together))
    assert correlation.abs().max().item() < 5 / (DRAWS // 2) ** 0.5
    assert stats.kstest(c.sigma[c.sigma > 0].numpy(), "uniform", args=(0.1, 1.9)).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_probabilities_of_0_and_1_are_never_and_always(probability: float) -> None:
    chosen = replace(recipe("simclr"), **dict.fromkeys(("flip", "jitter", "grey", "blur", "solarise"), probability))
    c = sample_colors(indices=torch.arange(DRAWS // 2), recipe=chosen, **KEYS)
    flip = sample_crops(9, 9, indices=torch.arange(DRAWS // 2), recipe=chosen, **KEYS).flip
    for flags in (c.jitter, c.grey, c.sigma > 0, c.solarise, flip):
        assert flags.double().mean().item() == probability


# ---------------------------------------------------------------- pixels against Pillow and torchvision


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


@pytest.mark.parametrize("operation", [0, 1, 2, 3])
@pytest.mark.parametrize(("side", "rows_to_split"), [(32, 1), (32, 1000), (50, 1)])
def test_each_jitter_operation_equals_torchvisions(
    operation: int, side: int, rows_to_split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "_ROWS_TO_SPLIT", rows_to_split)
    n = 24
    crops = photographs(2 * n, side, side).unflatten(0, (n, 2))
    crops[0] = torch.randint(0, 256, crops[0].shape, generator=torch.Generator().manual_seed(1)).byte()
    crops[1, 0] = 77  # gray: no hue
    crops[1, 1] = torch.tensor([0, 255]).byte()[torch.arange(3 * side * side).view(3, side, side) // 5 % 2]
    reach = torch.linspace(-0.5, 0.5, 2 * n) if operation == 3 else torch.linspace(0.0, 2.2, 2 * n)
    c = colors(2 * n, jitter=torch.ones(2 * n, dtype=torch.bool))
    c.factor[:, operation] = reach
    c.order[:, :] = torch.stack([torch.tensor(random.Random(r).sample(range(4), 4)) for r in range(2 * n)])
    got = finish_rows(crops, c, recipe("simclr_cifar"))
    worst = max(
        (got[row // n, row % n] - reference_finish(crops[row % n, row // n], c, row, recipe("simclr_cifar")))
        .abs()
        .max()
        .item()
        for row in range(2 * n)
    )
    assert worst < 1e-5


@pytest.mark.parametrize("rows_to_split", [1, 1000])
@pytest.mark.parametrize("brightness", ["multiply", "add"])
def test_whole_views_equal_torchvisions_on_the_same_parameters(
    brightness: Any, rows_to_split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "_ROWS_TO_SPLIT", rows_to_split)
    n = 40
    crops = photographs(2 * n, 48, 48).unflatten(0, (n, 2))
    chosen = replace(recipe("simclr"), size=48, brightness=brightness, solarise=0.2, blur_kernel=0.3)
    indices = torch.arange(n)
    c = sample_colors(indices=indices, recipe=chosen, **KEYS)
    got = torch.stack(finish_views(crops, indices=indices, recipe=chosen, **KEYS))
    assert got.dtype == torch.float32
    low, high = got.aminmax()
    assert low.item() >= 0.0
    assert high.item() <= 1.0
    for row in range(2 * n):
        want = reference_finish(crops[row % n, row // n], c, row, chosen)
        off = (got[row // n, row % n] - want).abs()
        if c.solarise[row]:
            # A pixel at the threshold may be inverted in one of them only.
            off = torch.minimum(off, (off - 1).abs()) * ((want - 0.5).abs() < 0.499)
        assert off.max().item() < (0.05 * LEVEL if c.sigma[row] > 0 else 1e-5), row


def test_hue_through_hsv_is_exact_for_every_corner_of_the_cube() -> None:
    levels = torch.tensor([0, 1, 64, 128, 200, 254, 255])
    cube = torch.cartesian_prod(levels, levels, levels).T[:, None]  # (3, 1, 343)
    image = torch.nn.functional.pad(cube, (0, 361 - 343)).reshape(3, 19, 19).byte()
    turns = torch.linspace(-0.5, 0.5, 22)
    crops = image.expand(11, 2, -1, -1, -1)
    c = colors(22, jitter=torch.ones(22, dtype=torch.bool))
    c.factor[:, 3] = turns
    got = finish_rows(crops, c, recipe("simclr_cifar"))
    for row in range(22):
        want = TF.adjust_hue((image / 255).double(), turns[row].item())
        assert (got[row // 11, row % 11] - want).abs().max().item() < 1e-5


def test_views_of_saturated_colors_stay_between_0_and_1() -> None:
    n = 64
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(2)).byte()
    images[torch.arange(n), torch.arange(n) % 3] = 255
    for solarise in (0.0, 1.0):
        chosen = replace(recipe("simclr_cifar"), strength=1.0, solarise=solarise)
        low, high = torch.stack(make_views(images, indices=torch.arange(n), recipe=chosen, **KEYS)).aminmax()
        assert low.item() >= 0.0
        assert high.item() <= 1.0


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.9, 1.3, 2.0])
def test_blur_is_within_a_twentieth_of_a_level(sigma: float) -> None:
    # Black and white noise is the worst case for the omitted taps.
    noise = torch.randint(0, 2, (1, 2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).byte() * 255
    noise[0, 1] = photographs(1, 224, 224)[0]
    c = colors(2, sigma=torch.full((2,), sigma).double())
    got = finish_rows(noise, c, replace(recipe("simclr"), jitter=0.0))
    for view in range(2):
        want = TF.gaussian_blur(noise[0, view].double() / 255, [23, 23], [sigma, sigma])
        assert (got[view, 0] - want).abs().max().item() < 0.05 * LEVEL


# ---------------------------------------------------------------- mistakes seen in other implementations


def test_the_blurs_sigma_is_a_standard_deviation_and_not_a_radius() -> None:
    # A sampled Gaussian has the variance of the continuous one from sigma 0.8 on.
    sigma = torch.tensor([0.8, 1.0, 1.5, 2.0]).double()
    dot = torch.zeros(2, 2, 3, 224, 224, dtype=torch.uint8)
    dot[..., 112, 112] = 255
    got = finish_rows(dot, colors(4, sigma=sigma), replace(recipe("simclr"), jitter=0.0)).double()
    away = torch.arange(224.0).double() - 112
    for row in range(4):
        spread = got[row // 2, row % 2, 0]
        assert spread.sum().item() == pytest.approx(1.0, abs=1e-5)
        for axis in (0, 1):
            variance = (spread.sum(dim=1 - axis) * away**2).sum().item()
            assert variance == pytest.approx(sigma[row].item() ** 2, rel=0.01)


def test_blur_happens_to_half_of_the_views() -> None:
    n = 300
    crops = photographs(2 * n, 64, 64).unflatten(0, (n, 2))
    plain = replace(recipe("simclr"), size=64, jitter=0.0, grey=0.0, blur=0.0)
    keys = {"indices": torch.arange(n)} | KEYS
    sharp = torch.stack(finish_views(crops, recipe=plain, **keys))
    blurred = torch.stack(finish_views(crops, recipe=replace(plain, blur=0.5), **keys))
    changed = (sharp != blurred).flatten(2).any(dim=2)
    assert stats.binomtest(int(changed.sum()), 2 * n, 0.5).pvalue > 1e-3
    assert stats.binomtest(int((changed[0] & changed[1]).sum()), n, 0.25).pvalue > 1e-3  # independently in each view


def test_cifars_recipe_never_blurs() -> None:
    n = 200
    crops = photographs(2 * n, 32, 32).unflatten(0, (n, 2))
    chosen = recipe("simclr_cifar")
    c = sample_colors(indices=torch.arange(n), recipe=chosen, **KEYS)
    got = torch.stack(finish_views(crops, indices=torch.arange(n), recipe=chosen, **KEYS))
    for row in range(2 * n):
        unblurred = replace(c, sigma=torch.zeros_like(c.sigma))
        want = reference_finish(crops[row % n, row // n], unblurred, row, chosen)
        assert (got[row // n, row % n] - want).abs().max().item() < 1e-5


def test_jitter_is_drawn_for_each_image_and_each_view() -> None:
    crops = photographs(1, 32, 32)[0].expand(50, 2, -1, -1, -1)
    chosen = replace(recipe("simclr_cifar"), jitter=1.0, grey=0.0)
    x_a, x_b = finish_views(crops, indices=torch.arange(50), recipe=chosen, **KEYS)
    assert len({x.numpy().tobytes() for x in torch.cat([x_a, x_b])}) == 100


# ---------------------------------------------------------------- bits


RECIPES = {
    "cifar": recipe("simclr_cifar"),
    "cifar with everything": replace(recipe("simclr_cifar"), blur=0.5, solarise=0.3, brightness="add", strength=1.0),
    "simclr at 64": replace(recipe("simclr"), size=64),
    "crop_flip at 20": replace(recipe("crop_flip"), size=20),
    "none at 40": replace(recipe("none"), size=40),
}


@pytest.mark.parametrize("chosen", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize(("height", "width"), [(32, 32), (61, 47)])
def test_views_do_not_depend_on_their_batch(chosen: ViewRecipe, height: int, width: int) -> None:
    n = 280 if height == 32 and chosen.size == 32 else 40  # the first has rows enough to group by brightness
    images = photographs(n, height, width)
    indices = torch.randperm(10**6, generator=torch.Generator().manual_seed(5))[:n]
    whole = make_views(images, indices=indices, recipe=chosen, **KEYS)
    assert whole[0].shape == whole[1].shape == (n, 3, chosen.size, chosen.size)
    cut = torch.stack(
        [
            crop_views(image, index=int(index), recipe=chosen, **KEYS)
            for image, index in zip(images, indices, strict=True)
        ]
    )
    assert cut.dtype == torch.uint8
    apart = finish_views(cut, indices=indices, recipe=chosen, **KEYS)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(6))
    batches = [order[:1], order[1:4], order[4:37], order[37:]]
    for view in range(2):
        assert torch.equal(whole[view], apart[view])
        for batch in batches:
            part = make_views(images[batch], indices=indices[batch], recipe=chosen, **KEYS)
            assert torch.equal(part[view], whole[view][batch])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        again = make_views(images, indices=indices, recipe=chosen, **KEYS)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again[0], whole[0])
    assert torch.equal(again[1], whole[1])


class _NoFloat64(TorchDispatchMode):
    """Raise TypeError for float64 on the device "meta", as a device without float64 would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, Tensor) and x.device.type == "meta" and x.dtype == torch.float64:
                raise TypeError(f"float64 in {func}")
        return out


@pytest.mark.parametrize(("side", "size"), [(32, 32), (64, 40)])
def test_a_device_without_float64_makes_the_same_views(side: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 40
    images, indices = photographs(n, side, side), torch.arange(n)
    chosen = replace(recipe("simclr"), size=size, solarise=0.2)
    crops = sample_crops(side, side, indices=indices, recipe=chosen, **KEYS)
    boxes = crops.box.unflatten(0, (2, n)), crops.flip.unflatten(0, (2, n))
    cut, cut_without = torch.empty(2, n, 2, 3, size, size, dtype=torch.uint8)
    resize._resize_batch(images, *boxes, "bicubic", cut)
    expected = finish_views(cut, indices=indices, recipe=chosen, **KEYS)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # autocast does not support "meta"
    with _NoFloat64(), pytest.raises(TypeError, match="float64"):
        make_views(images.to("meta"), indices=indices, recipe=chosen, **KEYS)
    monkeypatch.setattr(kernels, "has_float64", lambda device: False)
    monkeypatch.setattr(resize, "has_float64", lambda device: False)
    with _NoFloat64():
        assert make_views(images.to("meta"), indices=indices, recipe=chosen, **KEYS)[0].shape == (n, 3, size, size)
    resize._resize_batch(images, *boxes, "bicubic", cut_without)
    assert torch.equal(cut_without, cut)
    for ours, theirs in zip(finish_views(cut, indices=indices, recipe=chosen, **KEYS), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_views_of_224_do_not_depend_on_their_batch_or_threads() -> None:
    crops = photographs(10, 224, 224).unflatten(0, (5, 2))
    indices = torch.arange(100, 105)
    whole = finish_views(crops, indices=indices, recipe="simclr", **KEYS)
    threads = torch.get_num_threads()
    for at, count in ((0, 3), (2, 2), (4, 1)):
        torch.set_num_threads(count)
        part = slice(at, at + 1)
        alone = finish_views(crops[part], indices=indices[part], recipe="simclr", **KEYS)
        torch.set_num_threads(threads)
        assert torch.equal(alone[0], whole[0][part])
        assert torch.equal(alone[1], whole[1][part])


def test_seed_epoch_index_and_view_each_change_a_view() -> None:
    images = photographs(1, 32, 32).expand(20, -1, -1, -1)
    indices = torch.arange(20)

    def views(seed: int = 1, epoch: int = 1, at: Tensor = indices) -> Tensor:
        return torch.cat(make_views(images, seed=seed, epoch=epoch, indices=at, recipe="simclr_cifar"))

    everything = torch.cat([views(), views(seed=2), views(epoch=2), views(at=indices + 20)])
    assert len({x.numpy().tobytes() for x in everything}) == len(everything)
    assert torch.equal(views(), views())


def test_the_global_generator_and_the_images_are_left_alone() -> None:
    images = photographs(6, 32, 32)
    kept = images.clone()
    before = torch.get_rng_state()
    make_views(images, indices=torch.arange(6), recipe=RECIPES["cifar with everything"], **KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)


class _Crops(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return crop_views(self.images[index], index=index, recipe=RECIPES["simclr at 64"], **KEYS)


def test_workers_cut_the_same_crops() -> None:
    images = photographs(12, 90, 100)
    loaders = [torch.utils.data.DataLoader(_Crops(images), batch_size=4, num_workers=w) for w in (0, 1, 2)]
    batches = [torch.cat(list(loader)) for loader in loaders]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


# ---------------------------------------------------------------- center view and errors


@pytest.mark.parametrize(
    ("height", "width", "size", "side"),
    [(256, 320, 224, 224), (375, 300, 224, 262), (64, 64, 32, 56), (200, 40, 35, 35)],
)
def test_centre_view_is_pillows_resize_of_the_center(height: int, width: int, size: int, side: int) -> None:
    images = photographs(3, height, width)
    got = centre_view(images, size=size)
    assert got.shape == (3, 3, size, size)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    top, left = (height - side) // 2, (width - side) // 2
    for i in range(3):
        want = pil_crop(images[i], [top, left, side, side], False, size).float() / 255
        assert (got[i] - want).abs().max().item() <= 1.001 * LEVEL


def test_centre_view_keeps_a_small_image_whole() -> None:
    images = photographs(4, 32, 32)
    assert torch.equal(centre_view(images, size=32), images / 255)
    small = photographs(2, 28, 28)
    want = torch.stack([pil_crop(x, [0, 0, 28, 28], False, 32) for x in small]) / 255
    assert (centre_view(small, size=32) - want).abs().max().item() <= 1.001 * LEVEL


def test_none_gives_the_centre_view_twice() -> None:
    images = photographs(3, 100, 80)
    x_a, x_b = make_views(images, indices=torch.arange(3), recipe="none", **KEYS)
    assert torch.equal(x_a, x_b)
    assert torch.equal(x_a, centre_view(images, size=224))


def test_an_empty_batch_gives_empty_views() -> None:
    images = torch.empty((0, 3, 32, 32), dtype=torch.uint8)
    x_a, x_b = make_views(images, indices=torch.arange(0), recipe="simclr_cifar", **KEYS)
    assert x_a.shape == x_b.shape == (0, 3, 32, 32)


def test_wrong_inputs_are_refused() -> None:
    images = photographs(2, 32, 32)
    two = torch.arange(2)
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\) uint8"):
        make_views(images.float(), indices=two, recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\) uint8"):
        crop_views(images, index=0, recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match="crops must be"):
        finish_views(images, indices=two, recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match="one number per image"):
        make_views(images, indices=torch.arange(3), recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match="one number per image"):
        finish_views(images[:, None].expand(-1, 2, -1, -1, -1), indices=torch.arange(3), recipe="simclr_cifar", **KEYS)
    with pytest.raises(ValueError, match="no recipe 'simcrl'"):
        make_views(images, indices=two, recipe="simcrl", **KEYS)
