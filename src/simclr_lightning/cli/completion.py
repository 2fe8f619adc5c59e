"""Run ``simclr -sc install=bash``: print the script by which a shell completes commands and overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence

from simclr_lightning.app.launch.hydra_app import show
from simclr_lightning.cli import COMMANDS
from simclr_lightning.cli.guard import guard_command


def main(argv: Sequence[str]) -> int:
    """Answer the shell, whose variable COMP_LINE has the command line typed so far; return the exit code.

    Args:
        argv: ``-sc`` and install=SHELL, uninstall=SHELL or query=SHELL.
    """
    return guard_command(_main, argv[1:])


def _main(argv: Sequence[str]) -> int:
    typed = os.environ.get("COMP_LINE", "").split(" ")
    if not any(argument.startswith("query=") for argument in argv):
        return show(["--shell-completion"], argv)
    if len(typed) < 3:
        print(" ".join(COMMANDS))
    elif typed[1] == "train":
        os.environ["COMP_LINE"] = " ".join([typed[0], *typed[2:]])  # Hydra expects overrides after the program
        return show(["--shell-completion"], argv)
    return 0
