"""Recipes of views: the named ones are the papers', and wrong fields are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simclr_lightning.views import (
    ViewRecipe,
    recipe,
)


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
