"""Configurations with one value changed, and the message that refuses them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.validate import check_config
from simclr_lightning.app.errors import LINES, UserError


def a_config() -> DictConfig:
    """Return a new copy of a configuration that is accepted."""
    return copy.deepcopy(_composed())


@functools.cache
def _composed() -> DictConfig:
    return compose(["optimizer=sgd", "data=folder", "data.path=x", "logger=wandb"])


def put(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    """Set a value, or a whole node, as a file of conf/ could."""
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def refusal(cfg: DictConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_config(cfg)
    assert caught.value.code == 2
    assert len(str(caught.value).splitlines()) <= LINES
    return str(caught.value)
