"""Plain containers of a configuration, and the differences of two."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.plain import diff, from_plain, to_plain


@pytest.fixture(scope="module")
def default() -> DictConfig:
    return compose([])


def test_plain_containers(default: DictConfig) -> None:
    plain = to_plain(default)
    assert "hydra" not in plain
    assert plain["model"]["encoder"]["stem"] == "cifar"
    assert type(plain["views"]["area"]) is list


def test_plain_and_back_keeps_every_string() -> None:
    plain = {"a": {"path": r"x\${y} ${seed} \\${z}"}, "b": ["${", 1, None, True], "seed": 3}
    assert to_plain(from_plain(plain)) == plain


def test_the_difference_of_two_runs() -> None:
    default = to_plain(compose(["experiment=null"]))
    assert diff(default, default) == {}
    fresh = compose(
        [
            "experiment=null",
            "loss.temperature=0.5",
            "optimizer=sgd",
            "views.area=[0.2,1]",
            "hydra.run.dir=x",
            "ckpt_path=last",
        ]
    )
    assert list(diff(default, to_plain(fresh)).items()) == [
        ("loss.temperature", (0.2, 0.5)),
        ("optimizer._target_", ("simclr_lightning.optim.LARS", "torch.optim.SGD")),
        ("optimizer.fused", ("(absent)", True)),
        ("optimizer.lr", (0.3, 0.03)),
        ("optimizer.nesterov", ("(absent)", False)),
        ("optimizer.trust_coefficient", (0.001, "(absent)")),
        ("optimizer.weight_decay", (1e-06, 0.0001)),
        ("views.area", ([0.08, 1.0], [0.2, 1])),
    ]


def test_channels_last_true_and_auto_are_equal() -> None:
    default = to_plain(compose([]))
    assert default["model"]["channels_last"] == "auto"
    assert diff(to_plain(compose(["model.channels_last=true"])), default) == {}
    changed = diff(to_plain(compose(["model.channels_last=false"])), default)
    assert changed == {"model.channels_last": (False, "auto")}


def test_a_difference_compares_types_and_ignores_keys_of_one_start() -> None:
    saved = {"views": {"size": 32}, "seed": 1, "force": False}
    assert diff(saved, {"views": {"size": 32.0}, "seed": 1, "force": True}) == {}
    assert diff(saved, {**saved, "seed": True}) == {"seed": (1, True)}
