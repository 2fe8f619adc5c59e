"""Convert a configuration to plain containers and back, and list the keys in which two configurations differ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, cast

from omegaconf import DictConfig, OmegaConf

from simclr_lightning.app.config.quoting import literal
from simclr_lightning.run_folder import flatten

NOT_OF_THE_RUN: Final = frozenset({"hydra", "ckpt_path", "force", "debug", "dry_run", "trusted"})
"""Keys that hold for one start of a run: they are not saved with it, and a resume does not inherit them."""

_DOWNLOADED: Final = ("cifar10", "cifar100", "fashion_mnist", "stl10")  # to a folder that need not be there yet
_ABSENT: Final = "(absent)"
_ALIKE: Final = {"model.channels_last": (True, "auto")}  # two values with the same effect


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain containers, without the ``hydra`` node."""
    return {str(key): _plain(cfg[key]) for key in cfg if key != "hydra"}


def from_plain(plain: Mapping[str, Any], *, reads: int = 1) -> DictConfig:
    """Return a configuration in which every string resolves to itself, even a path that contains ``${``.

    Args:
        plain: plain containers.
        reads: how many times a string is resolved before it is used.
    """
    found: Any = dict(plain)
    for _ in range(reads):
        found = escaped(found)
    return cast(DictConfig, OmegaConf.create(found))


def with_absolute_paths(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose data.path and model.weights are absolute, so that another folder may be current.

    Left as they are: ``imagenet``, and a path at which there is nothing, which may be a name that the data set knows.
    """
    found = dict(plain)
    for part, name, keyword in (("data", "path", None), ("model", "weights", "imagenet")):
        node = plain.get(part)
        if not isinstance(node, Mapping) or not isinstance(value := node.get(name), str) or value == keyword:
            continue
        path = os.path.abspath(os.path.expanduser(value))  # noqa: PTH100, PTH111 - no error where there is no home
        made = str((node.get("dataset") or {}).get("_target_")).removeprefix("simclr_lightning.data.")
        if os.path.lexists(path) or (part == "data" and made in _DOWNLOADED):
            found[part] = {**node, name: path}
    return found


def escaped(value: Any) -> Any:
    """Return plain containers in which OmegaConf resolves every string to itself."""
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, dict):
        return {key: escaped(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(part) for part in value]
    return value


def diff(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return (saved, present) values of every leaf that differs, by dotted key, sorted.

    The keys of `NOT_OF_THE_RUN` are ignored. A key that one side lacks has the value "(absent)" there.

    Args:
        saved: the resolved configuration of a run, in plain containers.
        now: the present one.
    """
    old, new = (flatten({k: v for k, v in tree.items() if k not in NOT_OF_THE_RUN}) for tree in (saved, now))
    pairs = {key: (old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in sorted(old.keys() | new.keys())}
    return {key: pair for key, pair in pairs.items() if not _same(key, *pair)}


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the unresolved configuration as plain containers, without the ``hydra`` node."""
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items() if key != "hydra"}


def _plain(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _same(key: str, old: Any, new: Any) -> bool:
    if key in ("data.path", "model.weights") and isinstance(old, str) and isinstance(new, str):
        return os.path.realpath(old) == os.path.realpath(new)
    if old in _ALIKE.get(key, ()) and new in _ALIKE.get(key, ()):
        return True
    return bool(old == new) and isinstance(old, bool) == isinstance(new, bool)
