"""Checks of a whole configuration before any work: the arithmetic of the batch, missing keys, messages."""

from __future__ import annotations

import copy

import pytest
from changed_configs import a_config, put, refusal
from omegaconf import DictConfig, OmegaConf, open_dict

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.validate import check_config, check_devices, check_targets
from simclr_lightning.app.errors import UserError


@pytest.fixture
def cfg() -> DictConfig:
    return a_config()


def test_every_sampler_of_a_search_has_a_fixed_seed() -> None:
    pytest.importorskip("optuna")
    for name in ("tpe", "random", "cmaes", "nsgaii", "grid"):
        composed = compose(["hydra/sweeper=optuna", f"hydra/sweeper/sampler={name}"])
        check_config(composed)
        check_targets(composed)
        assert composed.hydra.sweeper.sampler.get("seed") == (
            None if name == "grid" else 0
        )  # a grid has no random numbers
    assert compose(["hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=3"]).hydra.sweeper.sampler.seed == 3


def test_logger_name_wandb_without_the_group_is_refused() -> None:
    message = refusal(compose(["logger.name=wandb"]))
    assert "logger.mode" in message
    assert "logger=wandb" in message
    check_config(compose(["logger.name=tensorboard"]))


def test_the_message_names_key_value_and_range(cfg: DictConfig) -> None:
    assert refusal(put(cfg, "optimizer.lr", 0)) == "optimizer.lr=0: it must be a number above 0 and at most 1,000"


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("seed", "seed is missing"),
        ("trainer.max_epochs", "trainer.max_epochs is missing"),
        ("trainer", "is missing"),
        ("model.encoder", "is missing"),
    ],
)
def test_a_missing_key_is_named(key: str, part: str, cfg: DictConfig) -> None:
    node, _, last = key.rpartition(".")
    with open_dict(cfg):
        del (OmegaConf.select(cfg, node) if node else cfg)[last]
    assert part in refusal(cfg)


def test_a_node_that_is_a_value_and_a_value_that_is_a_node(cfg: DictConfig) -> None:
    assert "model.encoder=5: this node must have parts" in refusal(put(copy.deepcopy(cfg), "model.encoder", 5))
    assert "has no parts" in refusal(put(cfg, "seed", {"a": 1}))


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("trainer.accumulate_grad_batches", "micro_batch_size"),
        ("trainer.logger", "logger"),
        ("trainer.val_check_interval", "callbacks.online.every_n_epochs"),
        ("trainer.default_root_dir", "hydra.run.dir"),
        ("trainer.callbacks", "callbacks"),
        ("data.recipe", "views"),
        ("data.seed", "seed"),
    ],
)
def test_a_key_that_the_program_sets_is_refused_with_the_key_to_use(key: str, instead: str, cfg: DictConfig) -> None:
    message = refusal(put(cfg, key, 2))
    assert key in message
    assert f"use {instead}" in message


def test_accumulation_is_refused_because_it_adds_no_negatives(cfg: DictConfig) -> None:
    message = refusal(put(cfg, "trainer.accumulate_grad_batches", 4))
    assert "no negatives" in message
    assert "use micro_batch_size" in message


def test_micro_batches_must_divide(cfg: DictConfig) -> None:
    put(put(cfg, "data.batch_size", 256), "micro_batch_size", 48)
    assert "micro_batch_size=48 does not divide data.batch_size=256 (256 = 5 * 48 + 16); use 32" in refusal(cfg)
    put(put(cfg, "micro_batch_size", 2), "trainer.devices", 4)
    assert "is not divisible by 4 devices" in refusal(cfg)
    put(cfg, "micro_batch_size", 4)
    assert "leaves 1 image on each of 4 devices" in refusal(cfg)
    put(cfg, "micro_batch_size", 512)
    assert "larger than data.batch_size=256" in refusal(cfg)


def test_the_checks_of_the_optimizer_run_too(cfg: DictConfig) -> None:
    put(cfg, "optimizer.momentum", 0)
    assert "Nesterov" in refusal(put(cfg, "optimizer.nesterov", True))
    adamw = compose(["optimizer=adamw", "+optimizer.betas=[2,3]"])
    assert "beta" in refusal(adamw)


def test_a_warm_up_longer_than_the_run_is_fine(cfg: DictConfig) -> None:
    check_config(put(put(cfg, "schedule.warmup_epochs", 500), "trainer.max_steps", 1))


def test_the_batch_must_divide(cfg: DictConfig) -> None:
    message = refusal(put(put(cfg, "trainer.devices", 3), "data.batch_size", 256))
    assert "data.batch_size=256 does not divide by 3 devices (256 = 3 * 85 + 1); use 255 or 258" in message
    check_devices(256, 2, 2)
    check_devices(255, "auto")
    check_devices(255, -1)
    with pytest.raises(UserError, match="6 devices"):
        check_devices(256, 3, 2)
    with pytest.raises(UserError, match="leaves 1 image"):
        check_devices(4, 4)


def test_the_ranges_do_not_apply_to_parts_of_the_user(cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": "mypkg.Net", "depth": 7, "width": "wide"})
    put(cfg, "schedule", {"_target_": "mypkg.schedule", "rule": "mine"})
    check_config(cfg)
