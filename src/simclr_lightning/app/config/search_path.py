"""Find the user's own folders of configuration files: those of ``--config-dir`` and ``hydra.searchpath``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from simclr_lightning.app.config.grammar import SEARCH_PATH, Override, parse
from simclr_lightning.app.config.quoting import quoted
from simclr_lightning.app.config.targets import check_trusted
from simclr_lightning.app.errors import mistake

_PACKAGE: Final = "pkg://"


def with_search_path(overrides: Sequence[str], folder: str | None = None) -> list[str]:
    """Return the overrides with at most one ``hydra.searchpath=[...]``, the last, whose folders are absolute.

    A job of a sweep and a run that is resumed from another folder then read the same files.

    Args:
        overrides: those of a command line.
        folder: the value of ``--config-dir``; Hydra looks there first.

    Raises:
        UserError: ``hydra.searchpath`` is not a list of texts.
    """
    given = [override for override in overrides if override.startswith(f"{SEARCH_PATH}=")]
    if not given and folder is None:
        return list(overrides)
    entries = [] if folder is None else [_absolute(folder)]
    if given:
        entries += map(_absolute, _entries(parse(given[-1:], sweep=True)[0]))
    rest = [override for override in overrides if override not in given]
    return [*rest, f"{SEARCH_PATH}=[{','.join(map(quoted, dict.fromkeys(entries)))}]"]


def check_search_path(overrides: Sequence[Override], trusted: Sequence[str]) -> None:
    """Check that every entry of ``hydra.searchpath`` is there; an entry pkg://PACKAGE, which is imported, is trusted.

    Raises:
        UserError: the message names the entry.
    """
    for override in overrides:
        for entry in _entries(override) if override.key == SEARCH_PATH else ():
            if entry.startswith(_PACKAGE):
                _check_package(entry.removeprefix(_PACKAGE), trusted)
            elif "://" in entry and not entry.startswith("file://"):
                raise mistake(f"{SEARCH_PATH}: {entry} is not a folder or pkg://PACKAGE")
            elif not Path(entry.removeprefix("file://")).is_dir():
                raise mistake(
                    f"{SEARCH_PATH}: there is no folder {entry.removeprefix('file://')}\n"
                    "give the folder that contains experiment/, model/, ...: --config-dir DIR"
                )


def _check_package(name: str, trusted: Sequence[str]) -> None:
    top = name.partition(".")[0]
    if top not in {package.partition(".")[0] for package in trusted}:
        raise mistake(f"{SEARCH_PATH}: to read files in {_PACKAGE}{name}, Python imports it; add trusted=[{top}]")
    check_trusted([top])
    try:
        found = importlib.util.find_spec(name)
    except ImportError:
        found = None
    if found is None:
        raise mistake(f"{SEARCH_PATH}: there is no package {name}")


def _entries(override: Override) -> list[str]:
    value: Any = None if override.parsed.is_delete() else override.parsed.value()
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise mistake(f"{override.text}: it must be a list of folders, such as {SEARCH_PATH}=[DIR]")
    return value


def _absolute(entry: str) -> str:
    if "://" in entry and not entry.startswith("file://"):
        return entry
    return os.path.abspath(os.path.expanduser(entry.removeprefix("file://")))  # noqa: PTH100, PTH111 - no home, no error
