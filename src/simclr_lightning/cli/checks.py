"""Checks before any work: types, ranges, the batch's arithmetic, and what a configuration may make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simclr_lightning.cli import config
from simclr_lightning.cli.devices import check_groups
from simclr_lightning.cli.errors import mistake
from simclr_lightning.cli.evaluation_ranges import DATA_SETS, EVALUATION_RULES, PROTOCOLS, check_names
from simclr_lightning.cli.mistakes import flatten
from simclr_lightning.cli.ranges import HYDRA_RULES, RULES, Rule
from simclr_lightning.cli.targets import check_targets, resolve

__all__ = ["check_config", "check_devices", "check_evaluation", "check_targets"]

# Keys that a target takes but the program sets itself, and the key to use instead.
SET_BY_PROGRAM: Final[dict[str, str]] = {
    "trainer.accumulate_grad_batches": "micro_batch_size",
    "trainer.callbacks": "callbacks.*",
    "trainer.default_root_dir": "hydra.run.dir",
    "trainer.enable_checkpointing": "callbacks.checkpoints.*",
    "trainer.enable_model_summary": "",
    "trainer.enable_progress_bar": "",
    "trainer.log_every_n_steps": "callbacks.metrics.every_n_steps",
    "trainer.logger": "logger",
    "trainer.num_sanity_val_steps": "",
    "trainer.plugins": "",
    "trainer.strategy": "trainer.devices",
    "trainer.use_distributed_sampler": "",
    "trainer.fast_dev_run": "dry_run or trainer.max_steps",
    "trainer.min_epochs": "trainer.max_epochs",
    "trainer.min_steps": "trainer.max_steps",
    "trainer.max_time": "trainer.max_steps",
    "trainer.limit_train_batches": "trainer.max_steps",
    "trainer.overfit_batches": "trainer.max_steps",
    "trainer.reload_dataloaders_every_n_epochs": "",
    "data.lazy": "micro_batch_size",
    "data.recipe": "views",
    "data.seed": "seed",
    "optimizer.params": "",
    "optimizer.maximize": "",
    "model.projector.in_dim": "",
}
_WHY: Final[dict[str, str]] = {
    "trainer.accumulate_grad_batches": "accumulated gradients add no negatives: each loss would see its own batch "
    "alone, and the large batch of SimCLR is one of many negatives. Gradient caching gives the large batch's gradient "
    "in the same memory",
}
# Parts whose own rules hold only when they are made by this project's or torch's target.
_PARTS: Final = ("model.encoder", "model.projector", "data.dataset", "views", "loss", "optimizer", "schedule")
_MORE_IMAGES_THAN_ANYONE_HAS: Final = 1 << 62


def check_config(cfg: DictConfig) -> None:
    """Check the type and range of every key of conf/ and what keys say together, before any work.

    Args:
        cfg: a composed configuration, with or without its ``hydra`` node.

    Raises:
        UserError: for the first mistake: the key, its value, its range.
    """
    plain = _checked(cfg, RULES)
    lacking = [key for key in RULES if key.startswith("logger.") and key.partition(".")[2] not in plain["logger"]]
    if plain["logger"]["name"] == "wandb" and lacking:
        raise mistake(f"logger.name=wandb lacks {', '.join(lacking)}: choose the group, logger=wandb")
    _check_hydra(cfg)
    _check_parts(plain)
    trainer, batch_size = plain["trainer"], plain["data"]["batch_size"]
    check_devices(batch_size, trainer["devices"], trainer["num_nodes"], micro_batch_size=plain["micro_batch_size"])
    if isinstance(trainer["devices"], int) and trainer["devices"] > 0:
        check_groups(trainer["sync_batchnorm"], trainer["devices"] * trainer["num_nodes"])


def check_evaluation(cfg: DictConfig) -> None:
    """Check the type and range of every key of conf/evaluate.yaml, before any work.

    Raises:
        UserError: for the first mistake: the key, its value, its range.
    """
    for key, options in (("protocol", PROTOCOLS), ("transfer", DATA_SETS)):
        names = cfg.get(key)
        check_names(key, names if OmegaConf.is_list(names) else [names], options)
    plain = _checked(cfg, EVALUATION_RULES)
    _check_parts(plain)
    semi = plain["semi"]
    if len(semi["epochs"]) != len(semi["fractions"]):
        raise mistake(
            f"semi.epochs={semi['epochs']} and semi.fractions={semi['fractions']}: give as many epochs as fractions"
        )


def _check_hydra(cfg: DictConfig) -> None:
    """Check what Hydra's node says of launcher and sweeper, when the configuration still has it."""
    if "hydra" not in cfg:
        return
    found: dict[str, Any] = {}
    for part in ("launcher", "sweeper"):
        node = cfg.hydra.get(part)
        if not OmegaConf.is_dict(node):
            raise mistake(f"hydra.{part}={_shown(node)}: it must have parts; choose it by hydra/{part}=")
        plain = config.to_plain(node)
        found |= {f"{part}.{name}": value for name, value in {**plain, **flatten(plain)}.items()}
    for key, rule in HYDRA_RULES.items():
        if key in found and not rule.accepts(found[key]):
            raise mistake(f"hydra.{key}={_shown(found[key])}: it must be {rule.says}")


def check_devices(
    batch_size: int, devices: int | str, num_nodes: int = 1, *, micro_batch_size: int | None = None
) -> None:
    """Refuse a global batch, or micro-batches of it, that the devices cannot share, before the images are known.

    Args:
        batch_size: the global batch.
        devices: devices on a node; "auto" and -1 are known only on the machine, and pass.
        num_nodes: nodes.
        micro_batch_size: images of the global batch in one micro-batch; None for no micro-batches.

    Raises:
        UserError: with the arithmetic.
    """
    from simclr_lightning.caching import check_micro_batch
    from simclr_lightning.data.datamodule import check_batch

    count = devices if isinstance(devices, int) and devices > 0 else 1
    try:
        check_batch(batch_size, images=_MORE_IMAGES_THAN_ANYONE_HAS, devices=count * num_nodes)
        if micro_batch_size is not None:
            check_micro_batch(micro_batch_size, batch_size=batch_size, devices=count * num_nodes)
    except ValueError as error:
        raise mistake(str(error)) from error


def _checked(cfg: DictConfig, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """The configuration in plain containers, every key within its rule."""
    try:
        plain = config.to_plain(cfg)
    except OmegaConfBaseException as error:
        raise mistake(f"{error.full_key}: {str(error).partition(chr(10))[0]}") from error
    flat = flatten(plain)
    for key, rule in rules.items():
        _check_key(key, rule, flat, plain)
    for key, instead in SET_BY_PROGRAM.items():
        if any(name == key or name.startswith(f"{key}.") for name in flat):
            hint = f"; use {instead}" if instead else ""
            raise mistake(f"{key}: {_WHY.get(key, 'the program sets this itself')}{hint}")
    return plain


def _check_key(key: str, rule: Rule, flat: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    part = next((part for part in _PARTS if key.startswith(f"{part}.")), None)
    inside = [name for name in flat if name.startswith(f"{key}.")]
    if inside:
        raise mistake(f"{key} must be {rule.says}, and has no parts: {inside[0]}")
    if key in flat:
        if not rule.accepts(flat[key]) and not (part and _is_foreign(plain, part) and not rule.required):
            raise mistake(f"{key}={_shown(flat[key])}: it must be {rule.says}")
        return
    if rule.required:
        above = [name for name in flat if key.startswith(f"{name}.")]
        if above:
            raise mistake(f"{above[0]}={_shown(flat[above[0]])}: it must have parts, such as {key}")
        raise mistake(f"{key} is missing; it must be {rule.says}")


def _check_parts(plain: Mapping[str, Any]) -> None:
    """What the parts check themselves: the recipe of views, the encoder's shape, the optimiser's numbers."""
    if not _is_foreign(plain, "views"):
        from simclr_lightning.views import ViewRecipe

        _run(ViewRecipe, plain["views"], "views")
    if "model" in plain and not _is_foreign(plain, "model.encoder"):
        _check_encoder(plain["model"]["encoder"])
    if "optimizer" in plain and not _is_foreign(plain, "optimizer"):
        _check_optimizer(plain["optimizer"])


def _check_encoder(node: Mapping[str, Any]) -> None:
    import torch

    from simclr_lightning.encoders import resnet, timm_encoder

    made = resolve(node["_target_"])
    if (node.get("mean") is None) != (node.get("std") is None):
        raise mistake("model.encoder.mean and model.encoder.std go together: give both, or neither")
    if made is resnet:
        with torch.device("meta"):  # shapes without memory
            _run(resnet, node, "model.encoder")
    if made is timm_encoder:
        _check_timm(str(node["name"]))


def _check_timm(name: str) -> None:
    try:
        import timm
    except ImportError as error:
        raise mistake("model=timm needs a package: pip install 'simclr-lightning[timm]'") from error
    if timm.is_model(name):
        return
    from difflib import get_close_matches

    near = get_close_matches(name, timm.list_models(), n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise mistake(f"model.encoder.name={name}: timm has no such model{hint}")


def _check_optimizer(node: Mapping[str, Any]) -> None:
    import torch

    made = resolve(node["_target_"])
    if made is not None and isinstance(made, type) and issubclass(made, torch.optim.Optimizer):
        found = _run(made, {**node, "params": [torch.zeros(1, requires_grad=True)]}, "optimizer")
        if found.defaults.get("fused", True) is not True:
            raise mistake("optimizer.fused must be true: only a fused step leaves out an update with NaN")


def _run(make: Any, node: Mapping[str, Any], key: str) -> Any:
    """Call one of this project's or torch's own makers, whose errors are messages."""
    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    try:
        return make(**arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        raise mistake(text if text.startswith(key.partition(".")[0]) else f"{key}: {text}") from error


def _is_foreign(plain: Mapping[str, Any], part: str) -> bool:
    """Whether a part is made by a target of the user's own (or one that will be refused)."""
    node: Any = plain
    for name in part.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return not isinstance(target, str) or resolve(target) is None


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
