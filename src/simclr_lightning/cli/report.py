"""Run ``simclr report DIR``: write tables and plots of one run or a sweep into its folder."""

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
    """Run ``simclr report`` with these arguments; return the exit code."""
    return guard_command(_main, argv, usage=USAGE)


def _main(argv: Sequence[str]) -> int:
    if not argv or ("=" in argv[0] and not Path(argv[0]).exists()):
        raise UserError(
            f"the first argument must be the folder of a run or a sweep\n{USAGE}", code=errors.CONFIGURATION
        )
    unknown = [argument for argument in argv[1:] if not argument.startswith(("axes=", "logger=wandb", "logger."))]
    if unknown:
        raise UserError(f"report has no argument {unknown[0]!r}\n{USAGE}", code=errors.CONFIGURATION)
    folder, axes = Path(argv[0]), _axes(argv[1:])
    tracker = _tracker([argument for argument in argv[1:] if argument.startswith("logger")])

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


def _axes(arguments: Sequence[str]) -> list[str] | None:
    asked = [argument.partition("=")[2] for argument in arguments if argument.startswith("axes=")]
    return re.findall(r"[^\s,\[\]'\"]+", asked[-1]) if asked else None


def _tracker(overrides: Sequence[str]) -> Any:
    """Return the checked logger group; None unless it is W&B's."""
    if not overrides:
        return None
    cfg = compose(overrides)
    check_config(cfg)
    return cfg.logger if cfg.logger.name == "wandb" else None
