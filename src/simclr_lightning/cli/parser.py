"""Parse the arguments of the commands that have options instead of overrides; mistakes raise `UserError`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from simclr_lightning.app.errors import mistake


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `UserError`, with the usage, instead of ending the process.

    Args:
        program: the command, such as "simclr embed".
        description: one line for --help.
    """

    def __init__(self, program: str, *, description: str) -> None:
        super().__init__(program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` instead of ending the process."""
        raise mistake(f"{message}\n{' '.join(self.format_usage().split())}")

    def print_help(self, file: Any = None) -> None:
        """Print the help; unlike in argparse, a failed write raises."""
        print(self.format_help(), end="", file=file, flush=True)

    def parse(self, argv: Sequence[str]) -> Any:
        """Return the values of the arguments as attributes; None after --help.

        Raises:
            UserError: an argument is unknown, missing or wrong.
        """
        try:
            return self.parse_args(argv)
        except SystemExit:
            return None
