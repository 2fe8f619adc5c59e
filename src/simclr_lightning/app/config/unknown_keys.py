"""Refuse keys that are missing, unknown or unused; the message names the nearest key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from omegaconf import DictConfig

from simclr_lightning.app.config.arguments import SET_BY_PROGRAM, WHY_SET_BY_PROGRAM
from simclr_lightning.app.config.grammar import Groups, Override, trusted_by
from simclr_lightning.app.config.keys import CALLBACKS_OF_PROGRAM, EVALUATION_RULES, RULES
from simclr_lightning.app.config.open_nodes import OPEN, arguments_of
from simclr_lightning.app.config.plain import unresolved
from simclr_lightning.app.config.targets import resolve
from simclr_lightning.app.config.written import written_arguments
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.near_names import listed, nearest
from simclr_lightning.run_folder import flatten
from simclr_lightning.text import first_line

_HYDRA_KEYS: Final = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})


def explain(error: Exception, overrides: Sequence[Override], base: DictConfig, groups: Groups) -> UserError:
    """Return the user's error for an error of Hydra or OmegaConf.

    Args:
        error: the original error.
        overrides: all overrides.
        base: the configuration composed of the choices of groups only.
        groups: the groups of this configuration.
    """
    known = [*flatten(unresolved(base)), *groups.own]
    is_grid = str(base.hydra.sweeper.get("_target_")).endswith(".BasicSweeper")
    for override in overrides:
        if is_grid and override.key.startswith("hydra.sweeper.params"):  # Hydra's schema refuses every value
            return mistake(
                f"{override.text}: this key works only in a file; on the command line write -m with overrides, such as "
                "seed=0,1"
            )
    for override in overrides:
        is_added = override.adds or (override.key.startswith(OPEN) and not override.parsed.is_delete())
        if override.is_group or is_added or _has(base, override.key):
            continue
        if override.key.startswith("hydra"):
            known = [f"hydra.{name}" for name in flatten(unresolved(base.hydra))]
        elif (
            not nearest(override.key, known)  # which needs no torch
            and not override.parsed.is_delete()
            and _is_argument(override.key, base, trusted_by(overrides))
        ):
            return mistake(f"{override.key}: conf/ has no value for it; add it with a plus: +{override.text}")
        return unknown(("~" if override.parsed.is_delete() else "") + override.key, known, groups.own)
    for override in overrides:
        if override.parsed.is_add() and _has(base, override.key):
            return mistake(f"{override.text}: the key exists already; write {override.text.lstrip('+')}")
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    if key and not _has(base, str(key)):
        return unknown(str(key), known, groups.own)
    reason = first_line(cause if str(cause).strip() else error)
    return mistake(": ".join([*([str(key)] if key else []), reason]))


def unknown(shown: str, known: Iterable[str], groups: Sequence[str]) -> UserError:
    """Return the error for an unknown key: the nearest known keys, or why the program sets this one itself."""
    key = shown.lstrip("~").replace("/", ".")
    if reason := set_by_program(key):
        return mistake(reason)
    what = "key" if "." in key else "key or group"
    names = [name for name in known if not name.rpartition(".")[2].startswith("_")]
    near = nearest(key, names)
    if near:
        return mistake(f"{shown}: unknown {what}; did you mean {' or '.join(near)}?")
    node = key.rpartition(".")[0]
    parts = {name[len(node) + 1 :].partition(".")[0] for name in names if name.startswith(f"{node}.")}
    if node and parts:
        own = "; your own callback needs callbacks.NAME._target_" if node.partition(".")[0] == "callbacks" else ""
        return mistake(f"{shown}: unknown {what}; {node} has {listed(sorted(parts))}{own}")
    return mistake(f"{shown}: unknown {what}; the groups are {', '.join(groups)}")


def set_by_program(key: str) -> str | None:
    """Return the message for a key that the program sets itself, or for its last part alone; None for other keys."""
    for name, instead in SET_BY_PROGRAM.items():
        if key == name or key.startswith(f"{name}.") or ("." not in key and name == f"trainer.{key}"):
            reason = WHY_SET_BY_PROGRAM.get(name, "the program sets this itself")
            return f"{name}: {reason}{f'; use {instead}' if instead else ''}"
    return None


def check_missing(cfg: DictConfig) -> None:
    """Refuse a configuration that lacks a value which only the user knows (``???`` in conf/).

    Raises:
        UserError: such as "data=folder needs data.path=DIR".
    """
    leaves = flatten(unresolved(cfg))
    missing = [key for key, value in leaves.items() if isinstance(value, str) and value == "???"]
    if not missing:
        return
    group = missing[0].partition(".")[0]
    choice = cfg.hydra.runtime.choices.get(group)
    kind = "VALUE" if not missing[0].endswith("path") else "FILE.npz" if choice == "array" else "DIR"
    raise mistake(f"{f'{group}={choice}' if choice else 'this configuration'} needs {missing[0]}={kind}")


def check_keys(cfg: DictConfig, overrides: Sequence[Override], groups: Groups) -> None:
    """Refuse keys that no code reads: added with ``+``, or misspelled in a file of conf/.

    A key is read if the tables of `keys` list it, or if the ``_target_`` of its node has an argument of that name.

    Raises:
        UserError: the message names the nearest key.
    """
    tree, known = unresolved(cfg), EVALUATION_RULES if groups.name == "evaluate" else RULES
    flat = flatten(tree)
    for name in CALLBACKS_OF_PROGRAM:
        if f"callbacks.{name}._target_" in flat:
            raise mistake(
                f"callbacks.{name} is a callback of the program; give yours another name, such as callbacks.mine"
            )
    for key in flat:
        if key in known or key.rpartition(".")[2] in _HYDRA_KEYS:
            continue
        if any(name.startswith(f"{key}.") for name in known):
            continue  # a value where a node belongs: the rule of the key refuses it
        node, target = _owner(tree, key)
        names = written_arguments(target) if target else ()
        if names is None:
            made = resolve(target, trusted_by(overrides), at=node) if target else None
            if made is None:
                continue  # `targets` refuses it
            names = arguments_of(made)
        part = key[len(node) + 1 :].partition(".")[0]
        if names is not None and part not in names:
            if key.startswith("experiment."):
                choice = f"experiment/{cfg.hydra.runtime.choices.experiment}.yaml"
                raise mistake(f"{key}: unknown key; the first line of {choice} must be: # @package _global_")
            elsewhere = (name for name in known if not name.startswith(f"{node}."))
            real = {*flat, *elsewhere, *(f"{node}.{name}" for name in names)} - {key}
            raise unknown(key, sorted(real), groups.own)


def _is_argument(key: str, base: DictConfig, trusted: Sequence[str]) -> bool:
    """Return whether the ``_target_`` above a key takes an argument of its name that the program leaves to the user."""
    node, target = _owner(unresolved(base), key)
    made = resolve(target, trusted) if target else None
    return made is not None and key[len(node) + 1 :] in (arguments_of(made) or ()) and not set_by_program(key)


def _has(cfg: DictConfig, key: str) -> bool:
    node: Any = unresolved(cfg) if not key.startswith("hydra") else {"hydra": unresolved(cfg.hydra)}
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _owner(tree: Mapping[str, Any], key: str) -> tuple[str, str | None]:
    """Return the nearest node above the key that has a ``_target_``, and that target."""
    parts = key.split(".")
    found: tuple[str, str | None] = ("", None)
    node: Any = tree
    for depth, part in enumerate(parts[:-1], start=1):
        if part not in node:
            break  # the name of a part contains a dot
        node = node[part]
        if not isinstance(node, Mapping):
            break  # a value has no parts
        if "_target_" in node:
            found = ".".join(parts[:depth]), str(node["_target_"])
    return found
