"""The command line, and the only rooms that know Hydra: ``simclr COMMAND ...``."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train KEY=VALUE ...               pretrain; `python train.py` is the same (-m sweeps, --help lists keys)",
    "evaluate": "evaluate RUN KEY=VALUE ...        judge an encoder by the paper's protocols (--help lists keys)",
    "search": "search RUN IMAGES                 nearest images of --query IMAGE, or near-duplicates of a folder",
    "export": "export RUN OUT --format F         the encoder for safetensors, torchvision, timm, ONNX or a hub",
    "embed": "embed RUN IMAGES OUT              write h of a folder's images to .npz, .parquet or .csv",
    "report": "report DIR                        tables and pictures of one run or of a sweep",
    "pack": "pack IMAGES OUT KEY=VALUE ...     shards of small JPEGs, read by data=packed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the words after the program's name; None takes them from the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0] if words else "--help"
    if command == "rank":  # one process of a run on several devices, started by the launcher
        from simclr_lightning.cli.ranks import rank_main

        return rank_main(words[1:])
    from simclr_lightning.cli.errors import guard, mistake

    def run() -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold what the terminal's encoding lacks
            sys.stdout.reconfigure(errors="backslashreplace")
        if command not in COMMANDS:
            return _usage(command)
        if "" in words[1:]:  # as a path it would be the folder one is in
            raise mistake(f"simclr {command} was given an empty word; is a variable of the shell not set?")
        code: int = importlib.import_module(f"simclr_lightning.cli.{command}").main(words[1:])
        return code

    return guard(run)  # each command words its own errors: here it is Ctrl-C while it is imported, and --help


def _usage(command: str) -> int:
    asked = command in ("--help", "-h", "help")
    if not asked:
        from difflib import get_close_matches

        near = get_close_matches(command, COMMANDS, n=1)
        print(
            f"error: unknown command {command!r}{f'; did you mean {near[0]}?' if near else ''}\n"
            f"the commands are {', '.join(COMMANDS)}; simclr --help says more",
            file=sys.stderr,
        )
        return 2
    lines = ["usage: simclr COMMAND ...", "", *(f"  {line}" for line in COMMANDS.values())]
    print("\n".join(lines))
    return 0
