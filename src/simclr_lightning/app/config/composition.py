"""Compose the configuration of a run from conf/ and the overrides of the command line, once per process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simclr_lightning.app.config.grammar import (
    CONFIG_NAME,
    SEARCH_PATH,
    Groups,
    Override,
    check_groups,
    expanded,
    first_value,
    parse,
    trusted_by,
)
from simclr_lightning.app.config.open_nodes import opened, remove_unused
from simclr_lightning.app.config.plain import NOT_OF_THE_RUN, escaped, to_plain
from simclr_lightning.app.config.quoting import quote_paths
from simclr_lightning.app.config.search_path import check_search_path
from simclr_lightning.app.config.targets import check_hydra
from simclr_lightning.app.config.trusted import look_in_current_folder
from simclr_lightning.app.config.unknown_keys import check_keys, check_missing, explain
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.overrides import is_given, key_of
from simclr_lightning.text import first_line

_sweep_overrides: tuple[str, ...] = ()


def conf_folder() -> Path:
    """Return the conf/ folder: the repository's in an editable install, else the one in the package.

    Raises:
        UserError: neither exists.
    """
    package = Path(__file__).resolve().parents[2]
    # An editable install may leave an old copy in the package, so the repository's folder comes first.
    candidates = [package.parents[1] / "conf"] if package.parent.name == "src" else []
    candidates.append(package / "conf")
    for folder in candidates:
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise UserError(f"the configuration folder is missing: {candidates[-1]}; install the package again")


def compose(overrides: Sequence[str], *, name: str = CONFIG_NAME) -> DictConfig:
    """Compose the configuration of one run or one evaluation, ``hydra`` node included.

    Args:
        overrides: such as ``loss.temperature=0.5``; the values of path keys are quoted here (see `quote_paths`).
        name: the main file in conf/, train or evaluate.

    Raises:
        UserError: a key, group or option is unknown (the message names the nearest one), an override cannot be parsed,
            a value is missing, or an interpolation names no key.
    """
    return _compose(overrides, name, saved={}, given=())


def check_shown(overrides: Sequence[str]) -> None:
    """Check the configuration that Hydra shows (``--cfg``, ``--help``): it may lack values and have unknown keys.

    Raises:
        UserError: it cannot be composed, or Hydra, which configures logging by it, would make an object not allowed.
    """
    with _composed(overrides, CONFIG_NAME) as (cfg, parsed, _):
        check_hydra(cfg.hydra, trusted_by(parsed))


def compose_resumed(saved: Mapping[str, Any], saved_overrides: Sequence[str], given: Sequence[str]) -> DictConfig:
    """Compose the configuration of a resumed run: its saved configuration with the given overrides applied.

    A key has its saved value, unless a given override sets it or its group, or it is computed from other keys. A key
    that was added to conf/ after the run was started has its default from conf/.

    Args:
        saved: the run's resolved configuration.
        saved_overrides: the overrides that the run was started with, without those that are given again. They choose
            the options of the groups.
        given: the overrides of this start.

    Raises:
        UserError: as `compose`.
    """
    return _compose([*saved_overrides, *given], CONFIG_NAME, saved=saved, given=given)


def of_a_sweep(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of a sweep with ``glob(...)`` expanded, and those of one job: the first value of each key.

    Raises:
        UserError: an override cannot be parsed, or has no value.
    """
    with _hydra() as loader:
        parsed = parse(quote_paths(overrides), sweep=True, loader=loader)
        check_search_path(parsed, trusted_by(parsed))
        return [expanded(override) for override in parsed], [first_value(override) for override in parsed]


def output_root() -> Path:
    """Return the folder of conf/train.yaml in which a run's folder is made by default."""
    saved = yaml.safe_load((conf_folder() / f"{CONFIG_NAME}.yaml").read_text("utf-8"))
    return Path(saved["hydra"]["run"]["dir"].partition("/${")[0])


def register_resolvers() -> None:
    """Register the interpolations of conf/, ``stem_for`` and ``sweep_hash``; a second call changes nothing."""
    OmegaConf.register_new_resolver("stem_for", _stem_for, replace=True)
    OmegaConf.register_new_resolver("sweep_hash", _sweep_hash, replace=True)
    Plugins.instance()  # imports Hydra's plugins, such as Optuna's
    # Hydra 1.3 fails when it merges the defaults of the Optuna plugin under conf/hydra/sweeper/optuna.yaml.
    sweepers = ConfigStore.instance().repo.get("hydra", {}).get("sweeper", {})
    sweepers.pop("optuna.yaml", None)
    for sampler in sweepers.get("sampler", {}).values():
        if "seed" in sampler.node:  # the same command chooses the same trials
            sampler.node.seed = 0


def set_sweep_overrides(overrides: Sequence[str]) -> None:
    """Set the overrides from which ``sweep_hash`` computes the name of a sweep's folder; their order is ignored."""
    global _sweep_overrides
    _sweep_overrides = tuple(sorted(overrides))


def _compose(overrides: Sequence[str], name: str, *, saved: Mapping[str, Any], given: Sequence[str]) -> DictConfig:
    with _composed(overrides, name) as (cfg, checked, groups):
        named = cfg.trusted if OmegaConf.is_list(cfg.trusted) else ()  # the rule of the key refuses other types
        if [str(package) for package in named] != list(trusted_by(checked)):
            raise mistake("trusted can be set only on the command line, not in a file: trusted=[PACKAGE]")
        if not is_given(given, "experiment"):  # an experiment may set any key
            _keep(cfg, {key: value for key, value in saved.items() if key not in NOT_OF_THE_RUN}, given)
        check_missing(cfg)
        _check_resolves(cfg)
        check_keys(cfg, checked, groups)
        return cfg


@contextmanager
def _composed(overrides: Sequence[str], name: str) -> Iterator[tuple[DictConfig, list[Override], Groups]]:
    """Yield the configuration as Hydra composes it, the overrides and the groups."""
    with _hydra() as loader:
        parsed = parse(quote_paths(overrides))
        for package in trusted_by(parsed):
            look_in_current_folder(package.partition(".")[0])
        check_search_path(parsed, trusted_by(parsed))
        groups = Groups(loader, parsed, name)
        checked = check_groups(parsed, groups)
        try:
            cfg = _load(loader, checked, name)
        except Exception as error:  # Hydra raises many types, and few of its messages name the nearest key
            raise _explained(error, loader, checked, groups, name) from error
        yield cfg, checked, groups


def _keep(node: DictConfig, saved: Mapping[str, Any], given: Sequence[str], prefix: str = "") -> None:
    """Set the keys of a node to their saved values, except keys that are given or computed from others."""
    for key, value in saved.items():
        name = f"{prefix}{key}"
        if key not in node or OmegaConf.is_interpolation(node, key) or _touches(given, name):
            continue
        if isinstance(value, Mapping) and OmegaConf.is_dict(node[key]):
            _keep(node[key], value, given, f"{name}.")
        else:
            node[key] = escaped(value)


def _touches(given: Sequence[str], name: str) -> bool:
    """Return whether an override sets a key, or a node or group that contains it."""
    return any(name == key or name.startswith(f"{key}.") for key in map(key_of, given))


@contextmanager
def _hydra() -> Iterator[Any]:
    """Yield Hydra's config loader for conf/, with this project's resolvers registered."""
    register_resolvers()
    # A sweep composes its jobs while Hydra's main function runs, so Hydra's global state is restored afterwards.
    instance = GlobalHydra.instance()
    outer, instance.hydra = instance.hydra, None
    try:
        with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3", job_name=CONFIG_NAME):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = outer


def _load(loader: Any, overrides: Sequence[Override], name: str) -> DictConfig:
    texts = [opened(override.text) for override in overrides]
    cfg = loader.load_configuration(config_name=name, overrides=texts, run_mode=RunMode.RUN, from_shell=False)
    remove_unused(cfg, overrides)
    return cast(DictConfig, cfg)


def _explained(error: Exception, loader: Any, overrides: Sequence[Override], groups: Groups, name: str) -> UserError:
    """Return the message for an error of Hydra: compare the overrides with the configuration of the group choices."""
    try:
        base = _load(loader, [one for one in overrides if one.is_group or one.key == SEARCH_PATH], name)
    except Exception as cause:  # a file in conf/ cannot be parsed, or this configuration lacks a group
        if str(cause).startswith("Could not override"):
            return mistake(str(cause).partition(".")[0].replace("Could not override", f"simclr {name} has no"))
        first = (str(cause).strip() or type(cause).__name__).splitlines()
        return mistake("the configuration cannot be composed: " + " ".join(line.strip() for line in first[:3]))
    return explain(error, overrides, base, groups)


def _check_resolves(cfg: DictConfig) -> None:
    try:
        to_plain(cfg)
        folders = {"hydra.run.dir": cfg.hydra.run.dir, "hydra.sweep.dir": cfg.hydra.sweep.dir}
    except OmegaConfBaseException as error:
        raise mistake(
            f"{error.full_key or 'an interpolation'}: {first_line(error)}\n"
            "${...} must name a key of the configuration; write \\${ for the two characters themselves"
        ) from error
    for key, folder in folders.items():
        if not str(folder).strip():  # an empty path would be the current folder
            raise mistake(f"{key} is empty; check that the shell variable in it is set")


def _stem_for(side: Any) -> str:
    # `validate` refuses a side that is not a number; its message names views.size.
    return "cifar" if isinstance(side, int | float) and side <= 32 else "imagenet"


def _sweep_hash() -> str:
    return hashlib.sha256("\0".join(_sweep_overrides).encode("utf-8", "surrogateescape")).hexdigest()[:8]
