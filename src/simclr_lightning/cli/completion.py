"""Run ``simclr -sc install=bash``: print the script by which a shell completes commands and overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence

from simclr_lightning.app.launch.hydra_app import show
from simclr_lightning.cli.guard import guard_command


def main(argv: Sequence[str]) -> int:
    """Answer the shell, whose variable COMP_LINE has the command line typed so far; return the exit code.

    Args:
        argv: ``-sc`` and install=SHELL, uninstall=SHELL or query=SHELL.
    """
    return guard_command(_main, argv[1:])


def _main(argv: Sequence[str]) -> int:
    program, _, typed = os.environ.get("COMP_LINE", "").partition(" ")
    if any(argument.startswith("query=") for argument in argv):
        command, _, overrides = typed.partition(" ")
        if command != "train":
            return 0
        os.environ["COMP_LINE"] = f"{program} {overrides}"  # Hydra expects overrides after the program
    return show(["--shell-completion"], argv)
