"""Check a composed configuration before any work: types, ranges, and the arithmetic of the global batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simclr_lightning.app.config.keys import EVALUATION_RULES, HYDRA_RULES, RULES
from simclr_lightning.app.config.plain import to_plain
from simclr_lightning.app.config.rules import Rule
from simclr_lightning.app.config.stock_parts import check_stock
from simclr_lightning.app.config.targets import check_own, check_targets, resolve
from simclr_lightning.app.config.unknown_keys import set_by_program
from simclr_lightning.app.errors import mistake
from simclr_lightning.data import SOURCES
from simclr_lightning.evaluation.protocols import PROTOCOLS
from simclr_lightning.extras import require
from simclr_lightning.global_batch import check_batch, check_micro_batch
from simclr_lightning.near_names import did_you_mean
from simclr_lightning.run_folder import flatten
from simclr_lightning.text import first_line

# Parts whose rules hold only if their target is one of this project or of torch.
_PARTS: Final = ("model.encoder", "model.projector", "data.dataset", "views", "loss", "optimizer", "schedule")
_OF_TIMM: Final = "simclr_lightning.optim.timm_optimizer"
_MORE_IMAGES_THAN_ANYONE_HAS: Final = 1 << 62


def check_run(cfg: DictConfig) -> None:
    """Check the composed configuration of a run, and every ``_target_`` in it.

    Raises:
        UserError: the message names the first key that is wrong.
    """
    check_config(cfg)
    check_targets(cfg, trusted=tuple(cfg.trusted))


def check_config(cfg: DictConfig) -> None:
    """Check the type and range of every key of a run, and the keys that depend on each other.

    Args:
        cfg: a composed configuration, with or without its ``hydra`` node.

    Raises:
        UserError: the message names the first wrong key, its value and its range.
    """
    plain = _checked(cfg, RULES)
    _check_logger(plain["logger"])
    _check_hydra(cfg)
    _check_parts(plain)
    check_stock(plain)
    trainer, batch_size = plain["trainer"], plain["data"]["batch_size"]
    check_devices(batch_size, trainer["devices"], trainer["num_nodes"], micro_batch_size=plain["micro_batch_size"])
    if isinstance(trainer["devices"], int) and trainer["devices"] > 0:
        check_batchnorm_groups(trainer["sync_batchnorm"], trainer["devices"] * trainer["num_nodes"])


def check_evaluation(cfg: DictConfig) -> None:
    """Check the type and range of every key of conf/evaluate.yaml.

    Raises:
        UserError: the message names the first wrong key, its value and its range.
    """
    for key, options in (("protocol", tuple(PROTOCOLS)), ("transfer", SOURCES)):
        names = cfg.get(key)
        named = list(names) if OmegaConf.is_list(names) else [names]
        yours = [name for name in named if key == "protocol" and isinstance(name, str) and "." in name]
        for name in yours:
            check_own(key, name, trusted=cfg.trusted)
        check_names(key, [name for name in named if name not in yours], options)
    plain = _checked(cfg, EVALUATION_RULES)
    _check_parts(plain)
    semi = plain["semi"]
    if len(semi["epochs"]) != len(semi["fractions"]):
        raise mistake(f"semi.epochs={semi['epochs']} and semi.fractions={semi['fractions']} must have the same length")


def _check_logger(node: Mapping[str, Any]) -> None:
    """Refuse the name of a logger without the options of its group."""
    lacking = [key for key in RULES if key.startswith("logger.") and key.count(".") == 1 and key[7:] not in node]
    if node["name"] == "wandb" and lacking:
        raise mistake(f"logger.name=wandb lacks {', '.join(lacking)}: choose the group, logger=wandb")


def _check_hydra(cfg: DictConfig) -> None:
    """Check the keys of the launcher and the sweeper, if the configuration has its ``hydra`` node."""
    if "hydra" not in cfg:
        return
    found: dict[str, Any] = {}
    for part in ("launcher", "sweeper"):
        node = cfg.hydra.get(part)
        if not OmegaConf.is_dict(node):
            raise mistake(f"hydra.{part}={_shown(node)}: this is a group; choose one of its options with hydra/{part}=")
        plain = to_plain(node)
        found |= {f"{part}.{name}": value for name, value in {**plain, **flatten(plain)}.items()}
    for key, rule in HYDRA_RULES.items():
        if key in found and not rule.accepts(found[key]):
            raise mistake(f"hydra.{key}={_shown(found[key])}: it must be {rule.says}")


def check_devices(
    batch_size: int, devices: int | str | list[int], num_nodes: int = 1, *, micro_batch_size: int | None = None
) -> None:
    """Refuse a global batch, or a micro-batch, that cannot be split evenly over the devices.

    Args:
        batch_size: images in the global batch.
        devices: devices per node, or a list of GPUs; "auto" and -1 count as one, since the machine decides.
        num_nodes: number of nodes.
        micro_batch_size: images in one micro-batch, over all devices; None: no micro-batches.

    Raises:
        UserError: the message shows the arithmetic.
    """
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1
    try:
        check_batch(batch_size, images=_MORE_IMAGES_THAN_ANYONE_HAS, devices=count * num_nodes)
        if micro_batch_size is not None:
            check_micro_batch(micro_batch_size, batch_size=batch_size, devices=count * num_nodes)
    except ValueError as error:
        raise mistake(str(error)) from error


def _checked(cfg: DictConfig, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the configuration as plain containers after checking every key against its rule."""
    try:
        plain = to_plain(cfg)
    except OmegaConfBaseException as error:
        raise mistake(f"{error.full_key}: {first_line(error)}") from error
    flat = flatten(plain)
    for key, value in flat.items():
        if value == "None":
            raise mistake(f"{key}=None: None is a text here and not an empty value; write {key}=null")
    for key, rule in rules.items():
        _check_key(key, rule, flat, plain)
    for key in flat:
        if "." in key and (reason := set_by_program(key)):
            raise mistake(reason)
    return plain


def _check_key(key: str, rule: Rule, flat: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    part = next((part for part in _PARTS if key.startswith(f"{part}.")), None)
    inside = [name for name in flat if name.startswith(f"{key}.")]
    if inside:
        raise mistake(f"{inside[0]}: {key} must be {rule.says}, and has no parts")
    if key in flat:
        if not rule.accepts(flat[key]) and not (part and not rule.required and not _takes(plain, part, key)):
            raise mistake(f"{key}={_shown(flat[key])}: it must be {rule.says}")
        return
    if rule.required:
        above = [name for name in flat if key.startswith(f"{name}.")]
        if above:
            raise mistake(f"{above[0]}={_shown(flat[above[0]])}: this node must have parts, such as {key}")
        raise mistake(f"{key} is missing; it must be {rule.says}")


def _takes(plain: Mapping[str, Any], part: str, key: str) -> bool:
    """Return whether the target of a part names this argument; others, such as options of timm, have no rule."""
    made = _made_by(plain, part)
    return made is not None and key[len(part) + 1 :].partition(".")[0] in inspect.signature(made).parameters


def _check_parts(plain: Mapping[str, Any]) -> None:
    """Make the parts that check their own arguments: the recipe of views, the encoder and the optimizer."""
    made = _made_by(plain, "views")
    if made is not None:
        _run(made, plain["views"], "views")
    made = _made_by(plain, "model.encoder") if "model" in plain else None
    if made is not None:
        _check_encoder(made, plain["model"]["encoder"])
    made = _made_by(plain, "optimizer")
    if made is not None:
        _check_optimizer(made, plain["optimizer"])


def _check_encoder(made: Any, node: Mapping[str, Any]) -> None:
    import torch

    if (node.get("mean") is None) != (node.get("std") is None):
        raise mistake("model.encoder.mean and model.encoder.std go together: give both or neither")
    if "name" in node:
        (_check_torchvision if made.__name__.startswith("torchvision") else _check_timm)(str(node["name"]))
        return
    with torch.device("meta"):  # parameters without memory
        _run(made, node, "model.encoder")


def _check_timm(name: str) -> None:
    try:
        require("timm", "model=timm")
    except ValueError as error:
        raise mistake(str(error)) from error
    import timm

    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), count=2)
        raise mistake(f"model.encoder.name={name}: timm has no such model{hint}")


def _check_torchvision(name: str) -> None:
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise mistake(f"model.encoder.name={name}: torchvision has no such model{did_you_mean(name, names, count=2)}")


def _check_optimizer(made: Any, node: Mapping[str, Any]) -> None:
    import torch

    if made is resolve(_OF_TIMM) or (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
        _run(made, {**node, "params": [torch.zeros(1, requires_grad=True)]}, "optimizer")


def _run(make: Any, node: Mapping[str, Any], key: str) -> Any:
    """Make a part with a target of this project or of torch; its error becomes the message.

    Raises:
        UserError: the target refuses its arguments.
    """
    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    try:
        return make(**arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        text = first_line(error)
        raise mistake(text if text.startswith(key.partition(".")[0]) else f"{key}: {text}") from error


def _made_by(plain: Mapping[str, Any], part: str) -> Any | None:
    """Return the target of a part if it is one of this project or of torch; None for any other."""
    node: Any = plain
    for name in part.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return resolve(target) if isinstance(target, str) else None


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_names(key: str, names: Iterable[Any], options: Sequence[str]) -> None:
    """Refuse a text that is not one of the options; other types are refused by the rule of the key.

    Raises:
        UserError: the message lists the options and names the nearest one.
    """
    for name in names:
        if isinstance(name, str) and name not in options:
            what = "the protocols are" if key == "protocol" else "the data sets are"
            raise mistake(f"{key}={name}: unknown{did_you_mean(name, options)}\n{what} {', '.join(options)}")


def check_batchnorm_groups(asked: int | str, world: int) -> None:
    """Refuse a group size of ``trainer.sync_batchnorm`` by which the number of devices is not divisible.

    Raises:
        UserError: the message names a size that is possible.
    """
    if isinstance(asked, int) and not isinstance(asked, bool) and asked < world and world % asked:
        near = next(size for size in range(asked, 0, -1) if world % size == 0)
        raise mistake(
            f"trainer.sync_batchnorm={asked}: {world} devices cannot be divided into groups of {asked}; "
            f"use {near}, for example"
        )
