"""Import a package's public names when they are first used, so that the command line answers without loading torch.

A package lists its public names once, as imports under ``if TYPE_CHECKING:`` in its ``__init__.py``, where type
checkers and import checks see them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for a package (PEP 562).

    Args:
        package: the package's ``__name__``.
        file: the package's ``__file__``; its imports under ``if TYPE_CHECKING:`` are the public names.
    """
    sources = _listed(Path(file))

    def get(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(sources[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *sources})

    return get, names, sorted(sources)


def _listed(file: Path) -> dict[str, str]:
    """Return the module that holds each name imported under ``if TYPE_CHECKING:``."""
    blocks = (node for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.If))
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    return {name.name: str(node.module) for node in imports for name in node.names}
