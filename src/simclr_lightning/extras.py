"""Optional packages: one message when one of them is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def require(package: str, what: str, extra: str | None = None) -> None:
    """Refuse to go on without an optional package; nothing is imported.

    Args:
        package: the module that must be there, such as ``timm``.
        what: what needs it, such as ``model=timm``.
        extra: the extra of this project that installs it; None: the package's own name.

    Raises:
        ValueError: the package is not installed; the message has the command that installs it.
    """
    if sys.modules.get(package) is None and find_spec(package) is None:
        raise ValueError(f"{what} needs a package: pip install 'simclr-lightning[{extra or package}]'")
