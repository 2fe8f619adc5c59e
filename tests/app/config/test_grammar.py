"""Overrides of a sweep: the first job of each, and those without values."""

from __future__ import annotations

import pytest

from simclr_lightning.app.config.composition import of_a_sweep
from simclr_lightning.app.errors import UserError
from simclr_lightning.overrides import flag


def test_the_first_job_of_a_sweep() -> None:
    overrides = ["-m", "loss.temperature=0.1,0.5", "model=resnet18,resnet50", "seed=range(3,9)", "data.path=a,b"]
    _, job = of_a_sweep(overrides[1:])
    assert job == ["loss.temperature=0.1", "model=resnet18", "seed=3", "data.path='a,b'"]
    assert of_a_sweep(["data.path='a b','c'", "optimizer.lr=interval(0.1,1)"])[1] == [
        "data.path='a b'",
        "optimizer.lr=0.1",
    ]
    assert of_a_sweep(["model=glob(resnet*,exclude=resnet1*)"]) == (["model=resnet34,resnet50"], ["model=resnet34"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed=[1", "cannot be parsed"),
        ("seed=range(3,0)", "no value"),
        ("seed=range(0,3,0)", "no value"),
        ("optimizer.lr=range(0.1,0.5,0.0)", "no value"),
        ("model=glob(vit*)", "no value"),
        ("loss.temperature=interval(0.5,0.1)", "the lower one first"),
        ("loss.temperature=interval(0.1,inf)", "finite"),
        ("loss.temperature=tag(log,interval(0,1))", "above 0"),
        ("+hydra.sweeper.params.seed=0,1", "takes one value"),
        ("hydra/launcher=simclr,slurm", "takes one value"),
    ],
)
def test_an_override_of_a_sweep_without_values_is_refused(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        of_a_sweep([override])
    assert override.split("=")[0] in str(caught.value)
    assert caught.value.code == 2


def test_flags() -> None:
    assert flag(["seed=1", "debug=true"], "debug")
    assert flag(["++debug=True"], "debug")
    assert not flag(["debug=true", "debug=false"], "debug")
    assert not flag(["nodebug=true"], "debug")
