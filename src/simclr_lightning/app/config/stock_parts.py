"""Check the arguments of Lightning's Trainer, callbacks, profilers and strategies; `stock` has the lists.

Each argument has the type of the class's own signature. Each object is also made here once, without its folder and
before any folder of a run exists, so that a wrong value is refused before any work. Making one runs no code of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from simclr_lightning.app.config.arguments import TRAINER_RULES
from simclr_lightning.app.config.keys import CALLBACKS_OF_PROGRAM, RULES
from simclr_lightning.app.config.rules import Rule, typed
from simclr_lightning.app.config.stock import (
    EARLY_STOPPING,
    FILES,
    FOLDERS,
    annotation_of,
    is_inside,
    place_of,
    why_no_strategy,
)
from simclr_lightning.app.config.targets import resolve
from simclr_lightning.app.errors import mistake
from simclr_lightning.near_names import did_you_mean
from simclr_lightning.run_folder import CHECKPOINTS
from simclr_lightning.selection import LABELED, SELECTABLE
from simclr_lightning.text import first_line

_TRAIN: Final = ("loss", "contrastive_accuracy", "contrastive_entropy")
_HARDNESS: Final = ("effective_negatives", "hardest_1", "hardest_10")


def further_callbacks(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nodes of the callbacks that are not the program's own, by their keys, ``early_stopping`` included."""
    found = {f"callbacks.{name}": node for name, node in plain["callbacks"].items() if name not in CALLBACKS_OF_PROGRAM}
    found |= {"early_stopping": plain.get("early_stopping")}
    return {key: node for key, node in found.items() if node is not None}


def check_stock(plain: Mapping[str, Any]) -> None:
    """Check the arguments of the Trainer, and of Lightning's own callbacks, profilers and strategies.

    Args:
        plain: the configuration of a run in plain containers.

    Raises:
        UserError: the message names the key and, where one is near, the right name.
    """
    _check_trainer(plain["trainer"])
    for key, node in further_callbacks(plain).items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise mistake(f"{key}: this node must have parts, such as {key}._target_={EARLY_STOPPING}")
        if _check_part(key, node) == EARLY_STOPPING or "monitor" in node:
            _check_monitor(key, node, plain)


def _check_trainer(node: Mapping[str, Any]) -> None:
    made = resolve(str(node["_target_"]))
    for name, value in node.items():
        if name == "_target_" or f"trainer.{name}" in RULES or made is None:
            continue
        rule = TRAINER_RULES.get(name) or typed(annotation_of(made, name))
        if name == "strategy" and isinstance(value, str) and (reason := why_no_strategy(value)):
            raise mistake(f"trainer.strategy={value}: {reason}")
        _check_value(f"trainer.{name}", value, rule)
    for name in ("profiler", "strategy"):
        if isinstance(part := node.get(name), Mapping):
            _check_part(f"trainer.{name}", part)
    if node.get("max_time") is not None:
        from lightning.pytorch.callbacks import Timer

        _try("trainer.max_time", Timer, {"duration": node["max_time"]})
    if node.get("gradient_clip_val") and str(node.get("precision")) in ("16", "16-mixed"):
        raise mistake(
            "trainer.gradient_clip_val does not work with trainer.precision=16-mixed, whose optimizers unscale the "
            "gradient themselves; use trainer.precision=bf16-mixed"
        )


def _check_part(key: str, node: Mapping[str, Any]) -> str | None:
    """Check the arguments of a class of Lightning, and return its name in the list; None for a class of the user."""
    target = str(node.get("_target_"))
    found = resolve(target, at=key)
    if found is None:
        return None  # `targets` refuses it, unless it is the user's
    name, allowed = next((name, names) for name, names in place_of(key).items() if resolve(name, at=key) is found)
    given = {argument: value for argument, value in node.items() if argument != "_target_"}
    for argument, value in given.items():
        where = f"{key}.{argument}"
        if argument not in allowed:
            hint = did_you_mean(argument, allowed)
            takes = f"a configuration may set {', '.join(allowed)}" if allowed else "it has no arguments here"
            raise mistake(f"{where}: not an argument that a configuration may set{hint}\n{takes}")
        if argument in FOLDERS | FILES and value is not None:
            _check_path(where, value)
        elif not (argument in ("monitor", "mode") and value == "auto"):
            _check_value(where, value, typed(annotation_of(found, argument)))
    without = {argument: value for argument, value in given.items() if argument not in FOLDERS and value != "auto"}
    if name.endswith("OnExceptionCheckpoint"):
        without["dirpath"] = "."
    if name == EARLY_STOPPING:
        without.setdefault("monitor", "")
    if not key.endswith("strategy"):
        _try(key, found, without)
    return name


def _check_value(key: str, value: Any, rule: Rule) -> None:
    if not rule.accepts(value):
        raise mistake(f"{key}={value!r}: it must be {rule.says}")


def _check_path(key: str, value: Any) -> None:
    if not isinstance(value, str) or not is_inside(value):
        raise mistake(f"{key}={value!r}: it must be a path inside the run's folder, such as {key}=more")
    if key.endswith(".dirpath") and PurePath(value).name == CHECKPOINTS:
        raise mistake(f"{key}={value}: that folder is for the checkpoints of the program; use {key}=more")


def _try(key: str, made: Any, arguments: Mapping[str, Any]) -> None:
    try:
        made(**arguments)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise mistake(f"{key}: {first_line(error)}") from error
    except Exception as error:  # Lightning's MisconfigurationException is a plain Exception
        raise mistake(f"{key}: {first_line(error)}") from error


def metric_names(plain: Mapping[str, Any], *, labeled: bool = True) -> list[str]:
    """Return the names of the metrics that a run logs, sorted.

    Args:
        plain: the configuration of the run in plain containers.
        labeled: whether the images have labels.
    """
    names = [f"train/{name}" for name in _TRAIN] + [f"train/{name}_step" for name in _TRAIN] + ["lr"]
    if plain["callbacks"]["hardness"]["every_n_steps"]:
        names += [f"train/{name}" for name in _HARDNESS]
    if plain["callbacks"]["online"]["every_n_epochs"]:
        names += [f"online/{name}" for name in SELECTABLE if labeled or name not in LABELED]
        names += ["online/linear_loss"] if labeled else []
    return sorted(names)


def direction(metric: str) -> str:
    """Return the EarlyStopping mode that fits a metric: "max" where a higher value is better, else "min".

    >>> direction("online/knn_top1"), direction("train/loss")
    ('max', 'min')
    """
    name = metric.partition("/")[2]
    return "max" if SELECTABLE.get(name, 1 if "accuracy" in name else -1) > 0 else "min"


def _check_monitor(key: str, node: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Refuse a metric that the run does not log; callbacks and modules of the user may log others."""
    monitor = node.get("monitor")
    if monitor is None and str(node["_target_"]).endswith(".EarlyStopping"):
        raise mistake(f"{key}.monitor is missing; it must be one of {', '.join(metric_names(plain))}")
    known = metric_names(plain)
    if monitor is None or monitor in known or not _is_stock_only(plain):
        return
    raise mistake(no_metric(key, str(monitor), known))


def no_metric(key: str, monitor: str, known: Sequence[str]) -> str:
    """Return the message for a metric that is not logged: the nearest name, and all names."""
    return f"{key}.monitor={monitor}: no such metric{did_you_mean(monitor, known)}\nthe metrics are {', '.join(known)}"


def _is_stock_only(plain: Mapping[str, Any]) -> bool:
    return all(resolve(str(node["_target_"]), at=key) for key, node in further_callbacks(plain).items())
