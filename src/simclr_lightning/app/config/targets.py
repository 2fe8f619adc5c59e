"""Check every ``_target_`` of a configuration against an explicit list of the objects that may be made.

A name is resolved to its object, and the object is looked up in the list, so an alias such as
``simclr_lightning.checkpoint.os.system`` is refused. Resolving imports only the modules listed here and the packages
that the user trusts (``trusted=[PACKAGE]``), so a hostile configuration runs no code.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from simclr_lightning import data, ntxent
from simclr_lightning.app.config.stock import CALLBACKS, OPTIMIZERS, PROFILERS, STRATEGIES, place_of, why_refused
from simclr_lightning.app.config.trusted import look_in_current_folder
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.near_names import nearest
from simclr_lightning.text import first_line

ALLOWED: Final[tuple[str, ...]] = (
    "simclr_lightning.encoders.resnet",
    "simclr_lightning.encoders.timm_encoder",
    "simclr_lightning.encoders.torchvision_encoder",
    "simclr_lightning.projector.Projector",
    *(f"simclr_lightning.ntxent.{name}" for name in ntxent.__all__),
    "simclr_lightning.optim.LARS",
    "simclr_lightning.optim.Schedule",
    "simclr_lightning.views.ViewRecipe",
    "simclr_lightning.data.ViewsDataModule",
    *(f"simclr_lightning.data.{name}" for name in data.SOURCES),
    "lightning.Trainer",
    "simclr_lightning.optim.timm_optimizer",
    *(f"torch.optim.{name}" for name in OPTIMIZERS),
)
"""Allowed everywhere except where `place_of` has a list; Lightning's other classes are allowed only at those keys."""
# This project's launchers. Hydra accepts only plugins' names; they are registered with it and are in no such module.
LAUNCHERS: Final = ("hydra_plugins.simclr_lightning.Launcher", "hydra_plugins.simclr_lightning.SlurmLauncher")
# Allowed below the hydra node, besides the launchers, sweepers and samplers of plugins.
HYDRA_ALLOWED: Final[tuple[str, ...]] = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra.experimental.callbacks.LogJobReturnCallback",
)
_LOGGING_ALLOWED: Final = frozenset(
    {
        *("colorlog.ColoredFormatter", "logging.FileHandler", "logging.Formatter", "logging.NullHandler"),
        *("logging.StreamHandler", "rich.logging.RichHandler"),
    }
)
_EXTERNAL_ALLOWED: Final = frozenset({"ext://sys.stdout", "ext://sys.stderr"})
# The only modules that resolving a name may import, besides their parent packages.
_STOCK: Final = (*CALLBACKS, *PROFILERS, *STRATEGIES)
_IMPORTABLE: Final = frozenset(name.rpartition(".")[0] for name in (*ALLOWED, *_STOCK, *HYDRA_ALLOWED)) | {
    "simclr_lightning",
    "torch",
    "hydra",
    "hydra._internal",
    "hydra._internal.core_plugins",
    "hydra.experimental",
    "simclr_lightning.cli",
}
_PLUGINS: Final = ("hydra_plugins", "optuna.samplers")


NOT_YOURS: Final = frozenset(
    {
        *("hydra", "hydra_plugins", "omegaconf", "optuna", "simclr_lightning", "wandb", "yaml", "requests"),
        *("lightning", "lightning_fabric", "pytorch_lightning", "torch", "torchvision", "timm"),
        *("matplotlib", "numpy", "pandas", "PIL", "pyarrow", "scipy", "skimage", "sklearn", "tensorboard", "mlflow"),
        *("comet_ml", "pip", "pkg_resources", "rich", "safetensors", "setuptools"),
    }
)


def check_targets(cfg: DictConfig, trusted: Sequence[str] = ()) -> None:
    """Refuse every ``_target_`` that is not on the list; nothing is instantiated here.

    Args:
        cfg: a composed configuration, with or without its ``hydra`` node.
        trusted: packages of the user, from the command line; the classes and functions defined there are allowed too.

    Raises:
        UserError: the message names the key and the target.
    """
    check_trusted(trusted)
    for key in cfg:
        if key == "hydra":
            check_hydra(cfg[key], trusted)
        else:
            _check_node(_read(cfg, key, str(key)), str(key), trusted)


def check_trusted(trusted: Sequence[str]) -> None:
    """Refuse ``trusted`` packages that are not the user's. One in the current folder can be imported afterwards.

    Raises:
        UserError: a package is part of Python, is this package or one of its dependencies, or does not exist.
    """
    for name in trusted:
        top = str(name).partition(".")[0]
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise mistake(f"trusted={name}: this is not a package name; write trusted=[PACKAGE]")
        if top in sys.stdlib_module_names or top in NOT_YOURS or top == "builtins":
            raise mistake(f"trusted={name}: {top} is not your own package; name the package that contains your code")
        look_in_current_folder(top)
        if importlib.util.find_spec(top) is None:
            raise mistake(
                f"trusted={name}: there is no package {top}; install it, or start the program in the folder that "
                "contains it"
            )


def check_own(key: str, name: str, trusted: Sequence[str]) -> None:
    """Refuse a dotted name that is not defined in a package that the user trusts.

    Raises:
        UserError: the message names the key and the name.
    """
    check_trusted(trusted)
    if not _is_defined_in(_follow(name, trusted), trusted):
        raise _refusal(key, name)


def resolve(name: str, trusted: Sequence[str] = (), *, at: str = "") -> Any | None:
    """Return the object with a dotted name if a configuration may make it at a key, else None.

    Raises:
        UserError: a trusted module cannot be imported.
    """
    found = _follow(name, trusted)
    return found if _is_listed(found, _names_at(at)) or _is_defined_in(found, trusted) else None


def _names_at(key: str) -> Sequence[str]:
    return tuple(place_of(key)) or ALLOWED


def _check_node(value: Any, key: str, trusted: Sequence[str], *, hydra: bool = False) -> None:
    for where, target in _targets(value, key):
        if not isinstance(target, str) or where.endswith("._args_"):
            raise mistake(f"{where}: this key is not allowed in a configuration; remove it")
        node = where.removesuffix("._target_")
        allowed = _is_hydras(target, trusted) if hydra else resolve(target, trusted, at=node) is not None
        if not allowed:
            raise _refusal(where, target)


def _refusal(where: str, target: str) -> UserError:
    if reason := why_refused(target):
        return mistake(f"{where}={target}: {reason}")
    near = nearest(target, _names_at(where.removesuffix("._target_")), count=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return mistake(
        f"{where}={target}: a configuration may not make this\n"
        f"{hint}to allow the code of your own package, add trusted=[PACKAGE] to the command line"
    )


def _targets(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every ``_target_`` and ``_args_`` in a plain or OmegaConf value, with its dotted key."""
    if isinstance(value, dict | DictConfig):
        for name in value:
            where = f"{key}.{name!s}"
            part = _read(value, name, where)
            if name in ("_target_", "_args_"):
                yield where, part
            else:
                yield from _targets(part, where)
    elif isinstance(value, list | tuple | ListConfig):
        for number in range(len(value)):
            where = f"{key}[{number}]"
            yield from _targets(_read(value, number, where), where)


def _read(node: Any, name: Any, where: str) -> Any:
    """Return the resolved value of a key: an interpolation may lead to a whole node, which must be checked too."""
    try:
        return node[name]
    except MissingMandatoryValue:
        return None
    except OmegaConfBaseException as error:
        if where.startswith("hydra.") and not where.startswith(_MADE_BY_HYDRA):
            return None  # it contains the number of the job, which is not known yet; nothing is instantiated there
        raise mistake(f"{where}: {first_line(error)}") from error


_MADE_BY_HYDRA: Final = ("hydra.launcher", "hydra.sweeper", "hydra.callbacks")


def check_hydra(node: Any, trusted: Sequence[str]) -> None:
    """Check the ``hydra`` node: its targets and the names that `logging.config` would call; raise `UserError`."""
    if not OmegaConf.is_dict(node):
        raise mistake("hydra: this node is Hydra's configuration; it cannot be replaced by one value")
    _check_node(node, "hydra", trusted, hydra=True)
    for key in _MADE_BY_HYDRA:
        _check_strings(_read(node, key.removeprefix("hydra."), key), key)
    for name in ("job_logging", "hydra_logging"):
        _check_logging(_read(node, name, f"hydra.{name}"), f"hydra.{name}")


def _check_strings(value: Any, key: str) -> None:
    """Refuse every ``${``: Hydra resolves these nodes twice, so an escaped one would be followed unchecked."""
    if isinstance(value, DictConfig):
        for name in value:
            _check_strings(_read(value, name, f"{key}.{name!s}"), f"{key}.{name!s}")
    elif isinstance(value, ListConfig):
        for number in range(len(value)):
            _check_strings(_read(value, number, f"{key}[{number}]"), f"{key}[{number}]")
    elif isinstance(value, str) and "${" in value:
        raise mistake(f"{key}={value}: Hydra would follow the ${{ in it; remove it, or write $NAME in a shell line")


def _check_logging(value: Any, key: str) -> None:
    """Check the names that `logging.config` would call (``()``, ``class``, ``factory``) or import (``ext://NAME``)."""
    if isinstance(value, DictConfig):
        for name in value:
            where = f"{key}.{name!s}"
            part = _read(value, name, where)
            if name in ("()", "class", "factory") and part not in _LOGGING_ALLOWED:
                raise _refusal(where, str(part))
            _check_logging(part, where)
    elif isinstance(value, ListConfig):
        for number in range(len(value)):
            _check_logging(_read(value, number, f"{key}[{number}]"), f"{key}[{number}]")
    elif isinstance(value, str) and value.startswith("ext://") and value not in _EXTERNAL_ALLOWED:
        raise _refusal(key, value)


def _is_hydras(name: str, trusted: Sequence[str]) -> bool:
    """Return whether a target is allowed below the hydra node."""
    if name in LAUNCHERS:
        return True
    if any(name.startswith(f"{package}.") for package in _PLUGINS):
        return _is_plugin(_follow(name, _PLUGINS))
    found = _follow(name, trusted)
    return _is_listed(found, HYDRA_ALLOWED) or _is_defined_in(found, trusted)


def _is_plugin(found: Any) -> bool:
    kinds: tuple[type, ...] = (Launcher, Sweeper)
    if "optuna" in sys.modules:
        kinds = (*kinds, importlib.import_module("optuna.samplers").BaseSampler)
    return isinstance(found, type) and issubclass(found, kinds)


def _follow(name: str, packages: Sequence[str]) -> Any | None:
    """Resolve a dotted name as Hydra does, attributes before modules, with the imports that `_import` allows."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    found: Any = None
    for depth, part in enumerate(parts, start=1):
        path = ".".join(parts[:depth])
        if isinstance(found, ModuleType | type) and hasattr(found, part):
            found = getattr(found, part)
        elif (found is None and depth == 1) or isinstance(found, ModuleType):
            found = _import(path, packages)
        else:
            return None
        if found is None:
            return None
    return found


def _import(path: str, packages: Sequence[str]) -> Any | None:
    """Import a listed module, or one of these packages; return None for any other name."""
    of_package = any(f"{path}.".startswith(f"{name}.") or name.startswith(f"{path}.") for name in packages)
    if not (path in _IMPORTABLE or of_package):
        return None
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            return None
        raise mistake(f"{path} cannot be imported: {error}") from error
    except Exception as error:  # a module of the user may raise anything
        raise mistake(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


def _is_listed(found: Any, names: Sequence[str]) -> bool:
    return found is not None and any(found is _follow(name, ()) for name in names)


def _is_defined_in(found: Any, trusted: Sequence[str]) -> bool:
    module = getattr(found, "__module__", None)
    return (
        callable(found)
        and isinstance(module, str)
        and any(module == name or module.startswith(f"{name}.") for name in trusted)
    )
