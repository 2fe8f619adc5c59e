"""Describe the parts of a `SimCLR` as plain dictionaries for its checkpoint, and make them again from those.

Only the factories in this module can be named by a checkpoint, and their arguments are plain values. So a checkpoint
from a stranger can make no other object and run no other code.
"""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from simclr_lightning import encoders
from simclr_lightning.encoders.encoder import FACTORIES
from simclr_lightning.ntxent import NTXent
from simclr_lightning.optim import LARS, Schedule
from simclr_lightning.projector import Projector

Plain = dict[str, Any]
PARTS: Final = ("encoder", "projector", "loss", "optimizer", "schedule")
"""Names of the arguments of `SimCLR` that are objects."""

_NAMES: Final = {"Projector": Projector, "NTXent": NTXent, "Schedule": Schedule}
_MADE: Final = {"projector": {"Projector"}, "loss": {"NTXent"}, "schedule": {"Schedule"}}


def _classes(module: Any, base: type) -> dict[str, type]:
    """Return the public subclasses of ``base`` in a module of torch, by their full names."""
    found = {name: kind for name, kind in vars(module).items() if not name.startswith("_") and inspect.isclass(kind)}
    return {f"{module.__name__}.{name}": kind for name, kind in found.items() if issubclass(kind, base)}


# Optimizers and torch's schedulers are made later, from the parameters: a part is a class with its options bound.
_BOUND: Final[dict[str, dict[str, type]]] = {
    "optimizer": {"LARS": LARS, **_classes(torch.optim, Optimizer)},
    "schedule": _classes(lr_scheduler, lr_scheduler.LRScheduler),
}


def describe(part: Any, name: str) -> Plain | None:
    """Return a dictionary of plain values from which `make` makes the part again.

    It holds ``factory`` and that factory's keyword arguments. For a part of another package, it holds only ``class``,
    the name that a message shows.

    Args:
        part: an argument of `SimCLR`; None is described as None.
        name: the name of that argument, one of `PARTS`.

    >>> describe(functools.partial(LARS, lr=0.3), "optimizer")
    {'factory': 'LARS', 'lr': 0.3}
    """
    if part is None:
        return None
    try:
        found: Plain = _plain(_described(part, name))
    except TypeError:
        return {"class": _full_name(part)}
    return found


def make(described: Mapping[str, Any], name: str) -> Any:
    """Return a new part from what `describe` returned.

    Raises:
        ValueError: the dictionary names no factory for this part, or arguments that the factory does not take.

    >>> make({"factory": "Projector", "in_dim": 8, "hidden_dim": 8, "out_dim": 4, "layers": 2}, "projector").out_dim
    4
    """
    factory = described.get("factory")
    options = {key: value for key, value in described.items() if key != "factory"}
    if name == "encoder" and factory in FACTORIES:
        return encoders.build(described)
    found: Callable[..., Any] | None = None
    if factory in _MADE.get(name, ()):
        found = _NAMES[str(factory)]
    elif factory in _BOUND.get(name, ()):
        return functools.partial(_BOUND[name][str(factory)], **options)
    if found is None:
        raise ValueError(f"the checkpoint names the factory {factory!r} for the {name}, which is not on the list")
    try:
        return found(**options)
    except TypeError as error:
        raise ValueError(f"the checkpoint's {name} does not fit its factory {factory}: {error}") from None


def read_checkpoint(path: Any, map_location: Any = None) -> dict[str, Any]:
    """Return a checkpoint of plain values, on the CPU unless ``map_location`` differs; nothing in it can run code.

    Raises:
        ValueError: the file holds other objects, or no weights.
    """
    try:
        saved = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} was not loaded: it holds more than plain values, and could run code") from error
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict):
        raise ValueError(f"{path} is not a training checkpoint: it has no state_dict")
    return saved


def arguments(
    saved: Mapping[str, Any], given: Mapping[str, Any], *, accepted: Collection[str], path: Any
) -> dict[str, Any]:
    """Return the arguments of a `SimCLR`: those given, and the others from the hyperparameters of its checkpoint.

    Args:
        saved: the checkpoint.
        given: arguments by name, which replace those of the checkpoint.
        accepted: the names of the arguments of the class.
        path: the checkpoint's file, for messages.

    Raises:
        ValueError: a part is in neither, or is not from this package.
    """
    found = saved.get("hyper_parameters")
    described: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    missing = [name for name in PARTS if name not in given and not _can_make(described, name)]
    if missing:
        shown = ", ".join(f"{name}={_class_name(described.get(name))}" for name in missing)
        raise ValueError(f"{path} does not contain all parts; pass to load_from_checkpoint: {shown}")
    wanted = {name: value for name, value in described.items() if name in accepted and name not in given}
    made = {name: make(wanted[name], name) for name in PARTS if wanted.get(name) is not None}
    return {**wanted, **made, **given}


def of_configuration(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the hyperparameters of a run of an older version, which saved none, from its configuration.

    Args:
        config: the saved configuration of the run; its nodes name their factories with ``_target_``.
        weights: of the module; the projector's first layer has the width of h.
    """
    model = config.get("model")
    nodes: dict[str, Any] = {**(model if isinstance(model, Mapping) else {}), **config}
    found = {name: _of_node(nodes[name], name) for name in PARTS if isinstance(nodes.get(name), Mapping)}
    first = weights.get("projector.layers.0.weight")
    if first is not None and "projector" in found:
        found["projector"]["in_dim"] = first.shape[1]
    data = config.get("data")
    sizes = {"global_batch_size": data.get("batch_size") if isinstance(data, Mapping) else None}
    return {**found, **sizes, "micro_batch_size": config.get("micro_batch_size")}


def _of_node(node: Mapping[str, Any], name: str) -> Plain:
    target = str(node.get("_target_"))
    own = target.rpartition(".")[2] if target.startswith("simclr_lightning.") else target
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    if name == "encoder":
        own = {"timm_encoder": "timm", "torchvision_encoder": "torchvision"}.get(own, own)
    if (name == "encoder" and own in FACTORIES) or own in _MADE.get(name, ()) or own in _BOUND.get(name, ()):
        return {"factory": own, **options}
    return {"class": target}


def _can_make(described: Mapping[str, Any], name: str) -> bool:
    part = described.get(name, {})
    return (part is None and name == "schedule") or (isinstance(part, Mapping) and "factory" in part)


def _class_name(described: Any) -> str:
    name = described.get("class") if isinstance(described, Mapping) else None
    return f"... (was {name})" if isinstance(name, str) else "..."


def _described(part: Any, name: str) -> Plain:
    """Return the factory of a part and its arguments.

    Raises:
        TypeError: the part comes from no factory of this module.
    """
    if name == "encoder" and type(part) in get_args(encoders.Encoder):
        return dict(part.spec) if part.spec.get("factory") in FACTORIES else {"class": str(part.spec.get("factory"))}
    if type(part) is Projector:
        return {"factory": "Projector", **part.spec}
    if type(part) is NTXent:
        return {"factory": "NTXent", "temperature": part.temperature, "gather": part.gather}
    if type(part) is Schedule:
        return {"factory": "Schedule", "rule": part.rule, "warmup_epochs": part.warmup_epochs}
    bound = part if isinstance(part, functools.partial) else functools.partial(part)
    names = {kind: full for full, kind in _BOUND.get(name, {}).items()}
    if bound.func not in names or bound.args:
        raise TypeError
    return {"factory": names[bound.func], **bound.keywords}


def _plain(value: Any) -> Any:
    """Return numbers, strings, None, and lists and dictionaries of them; a tuple becomes a list.

    Raises:
        TypeError: it is something else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError


def _full_name(part: Any) -> str:
    part = part.func if isinstance(part, functools.partial) else part
    kind = part if hasattr(part, "__qualname__") else type(part)
    return f"{kind.__module__}.{kind.__qualname__}"
