"""Describe an encoder of the user by a recipe, and make it again from the recipe, if the user trusts its package.

A recipe is a plain dictionary: ``factory`` is the dotted name of a class of `torch.nn.Module`, ``arguments`` are its
plain keyword arguments. A recipe without ``factory`` has only weights: `load_encoder` then needs the module itself.
"""

import importlib
import json
import sys
import typing
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor, nn

from simclr_lightning.encoders.check import pooled, unchanged
from simclr_lightning.text import first_line

_DESCRIBED: Final = ("factory", "name", "mean", "std", "feature_dim")  # the other keys of old recipes are arguments


class UntrustedError(ValueError):
    """A file names a class of a package that the caller does not trust; nothing of the package was imported.

    Attributes:
        name: the dotted name in the file.
        package: the package that contains it.
    """

    def __init__(self, name: str, path: object = None, *, how: str = 'trusted=["{0}"]') -> None:
        self.name, self.package = name, name.partition(".")[0]
        super().__init__(
            f"{'' if path is None else f'{path}: '}the encoder's spec names {name}, code of the package "
            f"{self.package}, which was not imported; if you trust it, add {how.format(self.package)}"
        )


def make_own(spec: Mapping[str, Any], trusted: Sequence[str] = ()) -> nn.Module:
    """Return a new module from a recipe.

    Args:
        spec: the recipe.
        trusted: names of packages, or dotted names, whose code may be imported and called.

    Raises:
        UntrustedError: ``factory`` is not in ``trusted``.
        ValueError: ``factory`` does not exist, makes no module, or fails.
    """
    name = spec.get("factory")
    if not isinstance(name, str):
        raise ValueError("the class of the encoder has no name that can be imported; give encoder=NET, a module of it")
    older = {key: value for key, value in spec.items() if key not in _DESCRIBED}
    arguments = spec.get("arguments", older)
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of {name} are {arguments!r:.40}; they must be a mapping")
    made = _make(name, arguments, trusted)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} made a {type(made).__name__}, which is not a torch.nn.Module")
    return made


def recipe_of(module: nn.Module, arguments: Mapping[str, Any] | None, images: Tensor) -> dict[str, Any]:
    """Return the recipe of a module, without ``factory`` if the recipe does not make the same module.

    The module is made again, and its h of ``images`` is compared; memory formats change it by rounding.

    Args:
        module: the encoder.
        arguments: those that made it; None: they are not known, and none are tried.
        images: (N, C, S, S), floats in [0, 1].

    Raises:
        ValueError: ``arguments`` are not plain values.
    """
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return verified({"factory": name, "arguments": dict(arguments or {})}, module, images)


def verified(recipe: dict[str, Any], module: nn.Module, images: Tensor) -> dict[str, Any]:
    """Return a recipe if it makes a module with equal h from the same weights; else one without ``factory``."""
    try:
        recipe = json.loads(json.dumps(recipe))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the arguments of the encoder must be plain values: {first_line(error)}") from None
    nameless = {"factory": None, "arguments": None, "name": type(module).__name__}
    name = str(recipe["factory"])
    if name.startswith(("__main__.", "__mp_main__.", "builtins.")) or "<" in name:
        return nameless
    with unchanged(module, images.device), torch.no_grad():
        module.eval()
        try:
            again = make_own(recipe, trusted=(name, name.partition(".")[0])).to(images.device)
            again.load_state_dict(module.state_dict())
            found, h = pooled(again.eval()(images)), pooled(module(images))
            same = h.shape == found.shape and bool(((found - h).abs() <= 1e-4 * h.abs().max().clamp(min=1)).all())
        except Exception:  # the code of the user may raise anything
            return nameless
    return recipe if same else nameless


def _make(name: str, arguments: Mapping[str, Any], trusted: Sequence[str]) -> Any:
    found = _found(name, trusted)
    values = {key: _value(value, trusted) for key, value in arguments.items()}
    try:
        return found(**values)
    except Exception as error:  # the code of the user may raise anything
        raise ValueError(f"{name} cannot be made: {type(error).__name__}: {first_line(error)}") from error


def _value(value: Any, trusted: Sequence[str]) -> Any:
    """Return an argument, with the modules in it made from their ``_target_``."""
    if isinstance(value, Mapping) and "_target_" in value:
        rest = {key: part for key, part in value.items() if key != "_target_"}
        return _make(str(value["_target_"]), rest, trusted)
    if isinstance(value, Mapping):
        return {key: _value(part, trusted) for key, part in value.items()}
    return [_value(part, trusted) for part in value] if isinstance(value, list) else value


def _found(name: str, trusted: Sequence[str]) -> Any:
    """Import and return the class of modules, or the function that returns one, with a dotted name.

    Raises:
        UntrustedError: the name is not in ``trusted``.
        ValueError: it does not exist, is defined elsewhere, or is something else.
    """
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts) or parts[0] in sys.stdlib_module_names:
        raise ValueError(f"the encoder's spec names the factory {name!r}, which makes no encoder")
    if not _inside(name, trusted):
        raise UntrustedError(name)
    found: Any = None
    for depth, part in enumerate(parts, start=1):
        path = ".".join(parts[:depth])
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(path)
        except ImportError as error:
            raise ValueError(
                f"{name} cannot be imported: {error}; install the package, or start in its parent folder"
            ) from error
        except Exception as error:  # a module of the user may raise anything
            raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    origin = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not _inside(origin, trusted) or not _makes_modules(found, named=name in trusted):
        raise ValueError(
            f"{name} is not allowed: it must be a class of torch.nn.Module, or a function annotated to return one, "
            f"that is defined in {', '.join(trusted)}"
        )
    return found


def _makes_modules(found: Any, *, named: bool) -> bool:
    """Return whether this is a class of modules, or a function that returns one; ``named``: any function."""
    if isinstance(found, type):
        return issubclass(found, nn.Module)
    if not isinstance(found, FunctionType):
        return False
    try:
        made = typing.get_type_hints(found).get("return")
    except Exception:  # an annotation may be any expression
        made = None
    return named or (isinstance(made, type) and issubclass(made, nn.Module))


def _inside(name: str, trusted: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in trusted)
