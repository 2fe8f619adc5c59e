"""``simclr report DIR``: tables and pictures of one run or a sweep, written into its folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr_lightning import loggers, report
from simclr_lightning.app import errors
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.validate import check_config
from simclr_lightning.app.errors import UserError
from simclr_lightning.cli.guard import guard_command

USAGE = "usage: simclr report DIR ['axes=[KEY,KEY]'] [logger=wandb]   (DIR: a run's folder, or one with runs below it)"


def main(argv: Sequence[str]) -> int:
    """Write a report as the arguments say; return the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    return guard_command(_main, argv)


def _main(words: Sequence[str]) -> int:
    if not words or ("=" in words[0] and not Path(words[0]).exists()):
        raise UserError(f"report needs the folder of a run or a sweep first\n{USAGE}", code=errors.CONFIGURATION)
    unknown = [word for word in words[1:] if not word.startswith(("axes=", "logger=wandb", "logger."))]
    if unknown:
        raise UserError(f"report does not know {unknown[0]!r}\n{USAGE}", code=errors.CONFIGURATION)
    folder, axes = Path(words[0]), _axes(words[1:])
    tracker = _tracker([word for word in words[1:] if word.startswith("logger")])

    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    with console.status("reading runs and drawing ..."):
        written = report.write_report(folder, axes)
    for note in written.notes:
        print(f"note: {note}", file=sys.stderr)
    console.print(written.headline, markup=False)
    console.print(f"{', '.join(written.files)} in {folder}", markup=False)
    if tracker is not None:
        loggers.log_report(tracker, folder)
        if command := loggers.sync_command(folder):
            console.print(f"sync: {command}", markup=False)
    return 0


def _axes(words: Sequence[str]) -> list[str] | None:
    asked = [word.partition("=")[2] for word in words if word.startswith("axes=")]
    return re.findall(r"[^\s,\[\]'\"]+", asked[-1]) if asked else None


def _tracker(words: Sequence[str]) -> Any:
    """The checked logger group; None when no tracker is asked for."""
    if not words:
        return None
    cfg = compose(words)
    check_config(cfg)
    return cfg.logger if cfg.logger.name == "wandb" else None
