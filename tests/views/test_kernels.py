"""Compare jitter, blur and whole views with torchvision on the same parameters."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as TF
from made_views import KEYS, LEVEL, colors, photographs, reference_finish

from simclr_lightning.views import (
    finish,
    finish_views,
    make_views,
    recipe,
)
from simclr_lightning.views.finish import finish_rows
from simclr_lightning.views.sampling import sample_colors


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
