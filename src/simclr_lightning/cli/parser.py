"""Parse the arguments of the commands that have options instead of overrides; mistakes raise `UserError`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from simclr_lightning.app.errors import mistake
from simclr_lightning.cli.guard import guard_command


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

    def run(self, command: Callable[[Any], int], argv: Sequence[str]) -> int:
        """Guard a command and give it the values of its arguments as attributes; return the exit code.

        Args:
            command: returns its own exit code; it is not called for --help.
            argv: the arguments.
        """

        def parsed(rest: Sequence[str]) -> int:
            try:
                asked = self.parse_args(rest)
            except SystemExit:  # after --help
                return 0
            return command(asked)

        return guard_command(parsed, argv)


def trusting(parser: Parser) -> None:
    """Add ``--trusted PACKAGE``, which may be repeated."""
    parser.add_argument(
        "--trusted", metavar="PACKAGE", action="append", default=[], help="your package that contains the encoder"
    )
