"""Run the command line, ``simclr COMMAND ...``: each command is one module, which parses, calls and prints.

``guard`` turns exceptions into messages and exit codes, ``parser`` is argparse with such messages.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from simclr_lightning import machine
from simclr_lightning.app.commands import remember_program
from simclr_lightning.app.errors import mistake
from simclr_lightning.cli import streams
from simclr_lightning.cli.arguments import cleaned
from simclr_lightning.cli.guard import guard
from simclr_lightning.near_names import did_you_mean
from simclr_lightning.stopping import STOP

COMMANDS: Final = {
    "train": "train KEY=VALUE ...               pretrain; `python train.py` is the same (-m sweeps, --help lists keys)",
    "evaluate": "evaluate RUN KEY=VALUE ...        score an encoder by the paper's protocols (--help lists keys)",
    "search": "search RUN IMAGES                 nearest images of --query IMAGE, or near-duplicates of a folder",
    "export": "export RUN OUT --format F         the encoder for safetensors, torchvision, timm, ONNX or a hub",
    "embed": "embed RUN IMAGES OUT              write h of a folder's images to .npz, .parquet or .csv",
    "report": "report DIR                        tables and pictures of one run or of a sweep",
    "pack": "pack IMAGES OUT KEY=VALUE ...     shards of small JPEGs, read by data=packed",
}
_INTERNAL: Final = ("rank",)  # one process of a run on several devices; the program starts it

_COMPLETION: Final = ("-sc", "--shell-completion")

_SHORT: Final = ("report", "--help", "-h", "help")  # commands of seconds, which end when nobody reads any more


def main(argv: Sequence[str] | None = None, *, ends: bool = False) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments after the program's name; None: those of this process.
        ends: the process ends after this call, so that signals are noted until then; always so without ``argv``.
    """
    if argv is None or ends:
        STOP.listen_to_the_end()
        remember_program()
    given = list(sys.argv[1:] if argv is None else argv)
    streams.open_closed()

    def run() -> int:
        streams.accept_any_name()
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a home that cannot be written it warns at length
        arguments = given if given[:1] == [*_INTERNAL] else cleaned(given)
        command = arguments[0] if arguments else "--help"
        if command not in _SHORT and not {"-h", "--help"} & {*arguments}:
            streams.outlive_readers()
        if command == "--version":
            print(importlib.metadata.version("simclr-lightning"))
            return 0
        if command in _COMPLETION:
            if 0 < os.environ.get("COMP_LINE", "").count(" ") < 2:  # the shell completes the command
                print(" ".join(COMMANDS))
                return 0
            command, arguments = "completion", ["completion", *arguments]
        elif command not in (*COMMANDS, *_INTERNAL):
            return _usage(command)
        if "" in arguments[1:] and command not in _INTERNAL:  # an empty path would be the current folder
            raise mistake(f"simclr {command}: an empty argument; check that the shell variable in it is set")
        machine.wait_passively()
        module = importlib.import_module(f"simclr_lightning.cli.{command}")
        STOP.check()
        code: int = module.main(arguments[1:])
        return code

    return guard(run)  # for Ctrl-C during imports, and for --help; each command has its own guard


def _usage(command: str) -> int:
    if command not in ("--help", "-h", "help"):
        raise mistake(
            f"unknown command {command!r}{did_you_mean(command, COMMANDS)}\n"
            f"the commands are {', '.join(COMMANDS)}; see simclr --help"
        )
    print("\n".join(["usage: simclr COMMAND ... | --version", "", *(f"  {line}" for line in COMMANDS.values())]))
    return 0
