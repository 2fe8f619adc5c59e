"""``simclr report DIR``: tables and pictures of one run or a sweep, written into its folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr_lightning.cli import errors
from simclr_lightning.cli.errors import UserError

USAGE = "usage: simclr report DIR ['axes=[KEY,KEY]'] [logger=wandb]   (DIR: a run's folder, or one with runs below it)"


def main(argv: Sequence[str]) -> int:
    """Report as the words say; returns the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    return errors.run(_main, argv)


def _main(words: Sequence[str]) -> int:
    if not words or ("=" in words[0] and not Path(words[0]).exists()):
        raise UserError(f"report needs the folder of a run or a sweep first\n{USAGE}", code=errors.CONFIGURATION)
    unknown = [word for word in words[1:] if not word.startswith(("axes=", "logger=wandb", "logger."))]
    if unknown:
        raise UserError(f"report does not know {unknown[0]!r}\n{USAGE}", code=errors.CONFIGURATION)
    folder, axes = Path(words[0]), _axes(words[1:])
    tracker = _tracker([word for word in words[1:] if word.startswith("logger")])

    from rich.console import Console

    from simclr_lightning.report import write_report

    console = Console(highlight=False, soft_wrap=True)
    with console.status("reading runs and drawing ..."):
        report = write_report(folder, axes)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    console.print(report.headline, markup=False)
    console.print(f"{', '.join(report.files)} in {folder}", markup=False)
    if tracker is not None:
        from simclr_lightning.cli.loggers import log_report
        from simclr_lightning.cli.tracker import sync_command

        log_report(tracker, folder)
        if command := sync_command(folder):
            console.print(f"sync: {command}", markup=False)
    return 0


def _axes(words: Sequence[str]) -> list[str] | None:
    asked = [word.partition("=")[2] for word in words if word.startswith("axes=")]
    return re.findall(r"[^\s,\[\]'\"]+", asked[-1]) if asked else None


def _tracker(words: Sequence[str]) -> Any:
    """The checked logger group; None when no tracker is asked for."""
    if not words:
        return None
    from simclr_lightning.cli import checks, config

    cfg = config.compose(words)
    checks.check_config(cfg)
    return cfg.logger if cfg.logger.name == "wandb" else None
