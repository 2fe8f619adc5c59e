"""Read the arguments of the default classes from their source, so that a mistyped key does not wait for an import."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Final, TypeGuard

# Target -> file in its top-level package.
FILES: Final[dict[str, str]] = {
    "lightning.Trainer": "pytorch/trainer/trainer.py",
    "simclr_lightning.optim.LARS": "optim/lars.py",
    "simclr_lightning.optim.Schedule": "optim/schedule.py",
    "torch.optim.AdamW": "optim/adamw.py",
    "torch.optim.SGD": "optim/sgd.py",
}


@functools.cache
def written_arguments(target: str) -> tuple[str, ...] | None:
    """Return the names of a class's keyword arguments, from its ``__init__`` or its fields in its file.

    Returns:
        None if the target is not in `FILES`, or its file or its ``__init__`` is not found: then it must be imported.
    """
    package = importlib.util.find_spec(target.partition(".")[0]) if target in FILES else None
    if package is None or not package.submodule_search_locations:
        return None
    try:
        tree = ast.parse(Path(package.submodule_search_locations[0], FILES[target]).read_text("utf-8"))
    except (OSError, SyntaxError):
        return None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == target.rpartition(".")[2]]
    for node in (node for found in classes for node in found.body):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and node.args.kwarg is None:
            return tuple(argument.arg for argument in (*node.args.args[1:], *node.args.kwonlyargs))
    fields = [node.target for found in classes if found.decorator_list for node in found.body if _is_field(node)]
    return tuple(target.id for target in fields if isinstance(target, ast.Name)) or None


def _is_field(node: ast.stmt) -> TypeGuard[ast.AnnAssign]:
    """Return whether a statement in the class of a dataclass is one of its fields."""
    return isinstance(node, ast.AnnAssign)
