"""Find the packages of ``trusted=[PACKAGE]`` in the current folder, however the program was started."""

from __future__ import annotations

import sys
from pathlib import Path


def look_in_current_folder(package: str) -> None:
    """Put the current folder first on ``sys.path``, as ``python -m`` does, if the package is there.

    Otherwise Python would look first in the folder of the program: that of train.py, or of the script ``simclr``.

    Args:
        package: a top-level name.
    """
    here = Path.cwd()
    if ((here / package).is_dir() or (here / f"{package}.py").is_file()) and sys.path[0] != str(here):
        sys.path.insert(0, str(here))
