"""Read Hydra's flags from a command line: those that it handles itself, such as --cfg, and --config-dir and -m."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from hydra._internal.utils import get_args_parser

from simclr_lightning.app.config.grammar import CONFIG_NAME
from simclr_lightning.app.config.search_path import with_search_path
from simclr_lightning.app.errors import mistake

_SHOWING: Final = ("help", "hydra_help", "cfg", "info", "shell_completion")
_INSTEAD: Final = {
    "config_name": "this program has one main file; write your keys into DIR/experiment/NAME.yaml, and give "
    "--config-dir DIR experiment=NAME",
    "config_path": "this program reads its own folder first; --config-dir DIR adds yours",
    "experimental_rerun": "this program saves no pickle; a run goes on with ckpt_path=RUN",
}


@dataclass(frozen=True)
class CommandLine:
    """A command line without flags, and what its flags ask for.

    Attributes:
        overrides: the overrides; the value of ``--config-dir`` is in ``hydra.searchpath``.
        multirun: whether a sweep is asked for, by -m.
        shows: the flags that Hydra handles itself, such as ``--cfg job``; no run is started then.
    """

    overrides: list[str]
    multirun: bool = False
    shows: tuple[str, ...] = ()


def read_flags(arguments: Sequence[str]) -> CommandLine:
    """Separate overrides from Hydra's flags, which may stand anywhere.

    Raises:
        UserError: a flag is unknown, lacks its value, does not fit the others, or has no use here.

    >>> read_flags(["seed=1", "--cfg", "job", "-m"])
    Traceback (most recent call last):
    simclr_lightning.app.errors.UserError: --cfg and --multirun cannot be given together; remove one of them
    >>> read_flags(["seed=1", "--cfg", "job", "debug=true"]).shows
    ('--cfg', 'job')
    """
    given = vars(_parsed(arguments))
    if given["config_name"] == CONFIG_NAME:
        given["config_name"] = None
    for name, instead in _INSTEAD.items():
        if given[name] is not None:
            raise mistake(f"{_flag(name)}: {instead}")
    commands = [name for name in (*_SHOWING, "multirun") if given[name]]
    if len(commands) > 1:
        raise mistake(f"{' and '.join(map(_flag, commands))} cannot be given together; remove one of them")
    for name, owners in (("resolve", {"cfg", "help"}), ("package", {"cfg"})):
        if given[name] and not owners & {*commands}:
            raise mistake(f"{_flag(name)} belongs to --cfg; add --cfg job")
    shows = commands and not given["multirun"]
    shown = [word for name in (*_SHOWING, "resolve", "package") for word in _typed(name, given[name])] if shows else []
    # Of --shell-completion the rest are not overrides: install=bash.
    overrides = given["overrides"]
    if not given["shell_completion"]:
        overrides = with_search_path(overrides, given["config_dir"])
    return CommandLine(overrides, bool(given["multirun"]), tuple(shown))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()
    parser.allow_abbrev = False
    parser.error = _refuse  # type: ignore[method-assign]  # argparse would print the usage and end the process
    found, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        _refuse(f"{unknown[0]}: there is no such flag, and an override must be KEY=VALUE")
    return found


def _refuse(message: str) -> NoReturn:
    raise mistake(f"{message}\nsimclr train --hydra-help lists the flags")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _typed(name: str, value: Any) -> list[str]:
    """Return a flag as arguments; none if it is not given."""
    return [] if not value else [_flag(name)] if value is True else [_flag(name), str(value)]
