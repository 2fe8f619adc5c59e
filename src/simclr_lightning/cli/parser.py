"""Words with options, for the commands that take no configuration: mistakes are said as everywhere else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from simclr_lightning.app.errors import mistake


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are a `UserError` with the usage.

    Args:
        program: the command, as it is typed.
        description: one line for --help.
    """

    def __init__(self, program: str, *, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise mistake(f"{message}\n{' '.join(self.format_usage().split())}")

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike argparse's, a full disk is an error."""
        print(self.format_help(), end="", file=file, flush=True)

    def parse(self, words: Sequence[str]) -> Any:
        """The words' values by name; None after --help.

        Raises:
            UserError: for words that do not fit.
        """
        try:
            return self.parse_args(words)
        except SystemExit:
            return None
