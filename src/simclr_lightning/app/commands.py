"""Name the program in the commands that it prints, so that a user can copy them."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

_PROGRAM: Final = "SIMCLR_PROGRAM"  # environment variable: the program of the first process, for its ranks and jobs


def remember_program() -> None:
    """Note the program that the user has typed; the processes that this one starts print the same."""
    os.environ.setdefault(_PROGRAM, sys.argv[0])


def train_command() -> str:
    """Return the command that trains, as the user typed it: ``simclr train``, or python with the path of train.py."""
    program = _program()
    return f"{_python()} {shlex.quote(program)}" if Path(program).name == "train.py" else f"{simclr_command()} train"


def simclr_command() -> str:
    """Return ``simclr``; if the shell does not find it, its path or ``python -m simclr_lightning.cli``."""
    program, found = Path(_program()), shutil.which("simclr")
    if program.name == "simclr":
        return "simclr" if found and os.path.realpath(found) == os.path.realpath(program) else shlex.quote(str(program))
    needs_module = program.parts[-2:] == ("cli", "__main__.py") or (program.name == "train.py" and not found)
    return f"{_python()} -m simclr_lightning.cli" if needs_module else "simclr"


def _program() -> str:
    return os.environ.get(_PROGRAM) or sys.argv[0]


def _python() -> str:
    """Return the name by which the shell finds this Python, or its path."""
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found and Path(found).parent == Path(sys.executable).parent:
            return name
    return shlex.quote(sys.executable)
