"""Keys that are not there, or that nobody reads, each answered with the nearest real name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf

from simclr_lightning.cli.errors import UserError, mistake
from simclr_lightning.cli.evaluation_ranges import EVALUATION_RULES
from simclr_lightning.cli.ranges import known_keys
from simclr_lightning.cli.targets import resolve
from simclr_lightning.cli.words import Groups, Word, listed, trusted_by

_HYDRA_KEYS: Final = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})
# Names that other programs use for the same thing.
_ALSO_CALLED: Final = {
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "optimizer.lr",
    "num_gpus": "trainer.devices",
    "root": "data.path",
    "steps": "trainer.max_steps",
    "tau": "loss.temperature",
    "warmup": "schedule.warmup_epochs",
    "wd": "optimizer.weight_decay",
    "workers": "data.num_workers",
}


def explain(error: Exception, words: Sequence[Word], base: DictConfig, groups: Groups) -> UserError:
    """Return the message for what Hydra raised.

    Args:
        error: Hydra's or OmegaConf's.
        words: all overrides.
        base: the configuration composed of the group choices alone.
        groups: the groups.
    """
    known = [*flatten(unresolved(base)), *groups.own]
    is_grid = str(base.hydra.sweeper.get("_target_")).endswith(".BasicSweeper")
    for word in words:
        if is_grid and word.key.startswith("hydra.sweeper.params"):  # its type refuses every value
            return mistake(f"{word.text}: this is for a file; on the command line give the words, such as seed=0,1")
    for word in words:
        if word.is_group or word.adds or _has(base, word.key):
            continue
        if word.key.startswith("hydra"):
            known = [f"hydra.{name}" for name in flatten(unresolved(base.hydra))]
        return unknown(("~" if word.parsed.is_delete() else "") + word.key, known, groups.own)
    for word in words:
        if word.parsed.is_add() and _has(base, word.key):
            return mistake(f"{word.text}: the key is there already; write {word.text.lstrip('+')}")
    cause = error.__cause__ or error
    key = getattr(cause, "full_key", None)
    if key and not _has(base, str(key)):
        return unknown(str(key), known, groups.own)
    reason = str(cause).strip() or str(error).strip() or type(cause).__name__
    return mistake(": ".join([*([str(key)] if key else []), reason.partition("\n")[0]]))


def unknown(shown: str, known: Iterable[str], groups: Sequence[str]) -> UserError:
    """The message for a key that is not there, with the nearest names that are."""
    key = shown.lstrip("~").replace("/", ".")
    what = "key" if "." in key else "key or group"
    names = [name for name in known if not name.rpartition(".")[2].startswith("_")]
    near = nearest(key, names)
    if near:
        return mistake(f"{shown}: unknown {what}; did you mean {' or '.join(near)}?")
    node = key.rpartition(".")[0]
    parts = {name[len(node) + 1 :].partition(".")[0] for name in names if name.startswith(f"{node}.")}
    if node and parts:
        return mistake(f"{shown}: unknown {what}; {node} has {listed(sorted(parts))}")
    return mistake(f"{shown}: unknown {what}; the groups are {', '.join(groups)}")


def nearest(key: str, known: Iterable[str], *, count: int = 2) -> list[str]:
    """Up to ``count`` real names near a key.

    In this order: another program's name for it, a value that the key takes for a node, the same last part
    elsewhere, a similar whole, a similar last part, a last part that holds it.
    """
    names = list(dict.fromkeys(known))
    node, _, last = key.rpartition(".")
    if _ALSO_CALLED.get(last) in names:
        return [_ALSO_CALLED[last]]
    if node in names and not any(name.startswith(f"{node}.") for name in names):
        return [node]
    last = last.lower()
    lasts: dict[str, list[str]] = {}
    for name in names:
        lasts.setdefault(name.rpartition(".")[2], []).append(name)
    if last in lasts:
        return get_close_matches(key, lasts[last], n=count, cutoff=0.0)
    close = get_close_matches(key, names, n=1, cutoff=0.75)
    # A key that shares its beginning looks near whatever its last part is.
    if close and (not node or get_close_matches(last, [close[0].rpartition(".")[2]], cutoff=0.5)):
        return close
    similar = get_close_matches(last, lasts, n=count, cutoff=0.7)
    similar = similar or [part for part in lasts if len(last) > 3 and last in part]
    return [name for part in similar for name in lasts[part]][:count]


def check_missing(cfg: DictConfig) -> None:
    """Refuse values that conf/ leaves to the user.

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


def check_keys(cfg: DictConfig, words: Sequence[Word], groups: Groups) -> None:
    """Refuse keys that nothing reads: added with ``+``, or misspelt in a configuration file.

    A key is read when conf/ has it, or when the ``_target_`` of its node takes an argument of that name.

    Raises:
        UserError: with the nearest real name.
    """
    tree, known = unresolved(cfg), frozenset(EVALUATION_RULES) if groups.name == "evaluate" else known_keys()
    flat = flatten(tree)
    for key in flat:
        if key in known or key.rpartition(".")[2] in _HYDRA_KEYS:
            continue
        if any(name.startswith(f"{key}.") for name in known):
            continue  # a node that became a value: its range says what it must be
        node, target = _owner(tree, key)
        made = resolve(target, trusted_by(words)) if target else None
        if target and made is None:
            continue  # a target that is not allowed is named by its own check
        names = _arguments(made) if made is not None else ()
        part = key[len(node) + 1 :].partition(".")[0]
        if names is not None and part not in names:
            real = {*flat, *known, *(f"{node}.{name}" for name in names)} - {key}
            raise unknown(key, sorted(real), groups.own)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by dotted key; lists and empty dictionaries are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as it stands, in plain containers, without hydra's own node."""
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items() if key != "hydra"}


def _has(cfg: DictConfig, key: str) -> bool:
    node: Any = unresolved(cfg) if not key.startswith("hydra") else {"hydra": unresolved(cfg.hydra)}
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _owner(tree: Mapping[str, Any], key: str) -> tuple[str, str | None]:
    """The nearest node above the key that has a ``_target_``, and that target."""
    parts = key.split(".")
    found: tuple[str, str | None] = ("", None)
    node: Any = tree
    for depth, part in enumerate(parts[:-1], start=1):
        if part not in node:
            break  # a part with a dot in its name
        node = node[part]
        if "_target_" in node:
            found = ".".join(parts[:depth]), str(node["_target_"])
    return found


def _arguments(made: Any) -> tuple[str, ...] | None:
    """The names of keyword arguments that the target takes; None when it takes any."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
