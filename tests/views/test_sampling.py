"""Compare the statistics of sampled parameters with the recipe and with torchvision."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_views import KEYS, photographs, reference_finish
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from simclr_lightning.views import (
    finish_views,
    recipe,
)
from simclr_lightning.views.sampling import sample_colors, sample_crops, sample_crops_of_one

DRAWS = 20_000


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
