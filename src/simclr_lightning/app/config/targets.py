"""Allow what a configuration may instantiate: an explicit list, matched on the object that a name leads to.

Following a name imports only the modules listed here and the user's own trusted packages, so a hostile configuration
runs no code. An alias such as ``simclr_lightning.checkpoint.os.system`` leads to an object that is not on the list.
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
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.near_names import nearest
from simclr_lightning.text import first_line

_OPTIMIZERS: Final = ("SGD", "Adam", "AdamW", "Adagrad")  # torch's with a fused step, which leaves out one with NaN
ALLOWED: Final[tuple[str, ...]] = (
    "simclr_lightning.encoders.resnet",
    "simclr_lightning.encoders.timm_encoder",
    "simclr_lightning.projector.Projector",
    *(f"simclr_lightning.ntxent.{name}" for name in ntxent.__all__),
    "simclr_lightning.optim.LARS",
    "simclr_lightning.optim.Schedule",
    "simclr_lightning.views.ViewRecipe",
    "simclr_lightning.data.ViewsDataModule",
    *(f"simclr_lightning.data.{name}" for name in data.SOURCES),
    "lightning.Trainer",
    *(f"torch.optim.{name}" for name in _OPTIMIZERS),
)
# This project's launchers under names that Hydra takes for a plugin's; they are in its registry, not in a module.
LAUNCHERS: Final = ("hydra_plugins.simclr_lightning.Launcher", "hydra_plugins.simclr_lightning.SlurmLauncher")
# Hydra's own nodes may make these, and plugins' launchers, sweepers and samplers.
HYDRA_ALLOWED: Final[tuple[str, ...]] = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra.experimental.callbacks.LogJobReturnCallback",
)
_LOGGING_ALLOWED: Final = frozenset(
    {
        "colorlog.ColoredFormatter",
        "logging.FileHandler",
        "logging.Formatter",
        "logging.NullHandler",
        "logging.StreamHandler",
        "rich.logging.RichHandler",
    }
)
_EXTERNAL_ALLOWED: Final = frozenset({"ext://sys.stdout", "ext://sys.stderr"})
# The only modules that following a name may import; their packages come with them.
_IMPORTABLE: Final = frozenset(name.rpartition(".")[0] for name in (*ALLOWED, *HYDRA_ALLOWED)) | {
    "simclr_lightning",
    "torch",
    "hydra",
    "hydra._internal",
    "hydra._internal.core_plugins",
    "hydra.experimental",
    "simclr_lightning.cli",
}
_PLUGINS: Final = ("hydra_plugins", "optuna.samplers")
_NOT_YOURS: Final = frozenset(
    {
        *("hydra", "hydra_plugins", "omegaconf", "optuna", "simclr_lightning", "wandb", "yaml", "requests"),
        *(
            "lightning",
            "lightning_fabric",
            "pytorch_lightning",
            "torch",
            "torchvision",
            "timm",
            "safetensors",
        ),
        *("matplotlib", "numpy", "pandas", "PIL", "pyarrow", "scipy", "skimage", "sklearn", "tensorboard"),
        *("pip", "pkg_resources", "rich", "safetensors", "setuptools"),
    }
)


def check_targets(cfg: DictConfig, trusted: Sequence[str] = ()) -> None:
    """Refuse every ``_target_`` that is not meant to be made from a configuration; nothing is run here.

    Args:
        cfg: a composed configuration, with or without its ``hydra`` node.
        trusted: the user's own packages, from the command line: what they define is allowed too.

    Raises:
        UserError: naming the key and the target.
    """
    check_trusted(trusted)
    for key in cfg:
        if key == "hydra":
            _check_hydra(cfg[key], trusted)
        else:
            _check_node(_read(cfg, key, str(key)), str(key), trusted)


def check_trusted(trusted: Sequence[str]) -> None:
    """Refuse packages that cannot be the user's own.

    Raises:
        UserError: for Python's modules, this package's and its dependencies'.
    """
    for name in trusted:
        top = str(name).partition(".")[0]
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise mistake(f"trusted={name}: this is no package name; write trusted=[PACKAGE]")
        if top in sys.stdlib_module_names or top in _NOT_YOURS or top == "builtins":
            raise mistake(f"trusted={name}: {top} is not your own package; name the one that holds your code")
        if importlib.util.find_spec(top) is None:
            raise mistake(f"trusted={name}: no package {top} is found; start in the folder that holds it")


def resolve(name: str, trusted: Sequence[str] = ()) -> Any | None:
    """Return the object that a dotted name leads to when a configuration may make it, else None.

    Raises:
        UserError: when a trusted module cannot be imported.
    """
    found = _follow(name, trusted)
    return found if _is_listed(found, ALLOWED) or _is_defined_in(found, trusted) else None


def _check_node(value: Any, key: str, trusted: Sequence[str], *, hydra: bool = False) -> None:
    for where, target in _targets(value, key):
        if not isinstance(target, str) or where.endswith("._args_"):
            raise mistake(f"{where}: this key is not taken from a configuration; leave it out")
        allowed = _is_hydras(target, trusted) if hydra else resolve(target, trusted) is not None
        if not allowed:
            raise _refusal(where, target)


def _refusal(where: str, target: str) -> UserError:
    near = nearest(target, ALLOWED, count=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return mistake(
        f"{where}={target}: a configuration may not make this\n"
        f"{hint}for code of your own package add trusted=[PACKAGE] to the command line"
    )


def _targets(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every ``_target_`` and ``_args_`` under a plain or OmegaConf value, with its key."""
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
    """A resolved value: an interpolation may make a node of its own, so nothing unresolved may pass."""
    try:
        return node[name]
    except MissingMandatoryValue:
        return None
    except OmegaConfBaseException as error:
        if where.startswith("hydra.") and not where.startswith(_MADE_BY_HYDRA):
            return None  # of the job's number, known later; nothing is made from there
        raise mistake(f"{where}: {first_line(error)}") from error


_MADE_BY_HYDRA: Final = ("hydra.launcher", "hydra.sweeper", "hydra.callbacks")


def _check_hydra(node: Any, trusted: Sequence[str]) -> None:
    if not OmegaConf.is_dict(node):
        raise mistake("hydra: this must be Hydra's own configuration")
    _check_node(node, "hydra", trusted, hydra=True)
    for key in _MADE_BY_HYDRA:
        _check_strings(_read(node, key.removeprefix("hydra."), key), key)
    for name in ("job_logging", "hydra_logging"):
        _check_logging(_read(node, name, f"hydra.{name}"), f"hydra.{name}")


def _check_strings(value: Any, key: str) -> None:
    """Hydra resolves twice what it makes: an escaped interpolation passes the first time, and makes anything then."""
    if isinstance(value, DictConfig):
        for name in value:
            _check_strings(_read(value, name, f"{key}.{name!s}"), f"{key}.{name!s}")
    elif isinstance(value, ListConfig):
        for number in range(len(value)):
            _check_strings(_read(value, number, f"{key}[{number}]"), f"{key}[{number}]")
    elif isinstance(value, str) and "${" in value:
        raise mistake(f"{key}={value}: Hydra would follow the ${{ in it; leave it out, or write $NAME in a shell line")


def _check_logging(value: Any, key: str) -> None:
    """logging.config calls what stands under ``()`` and ``class``, and imports what stands after ``ext://``."""
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
    """Whether Hydra's own nodes may make it."""
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
    """Follow a dotted name as Hydra does: attributes first, then modules, of those that may be imported."""
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
    """Import a listed module, or one of these packages (which this is for), else nothing."""
    of_package = any(f"{path}.".startswith(f"{name}.") or name.startswith(f"{path}.") for name in packages)
    if not (path in _IMPORTABLE or of_package):
        return None
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            return None
        raise mistake(f"{path} cannot be imported: {error}") from error
    except Exception as error:  # whatever the user's own module raises when it is imported
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
