"""``simclr export RUN OUT --format F``: the encoder in another library's format, with its card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr_lightning import export, files
from simclr_lightning.app import errors
from simclr_lightning.cli.guard import guard_command
from simclr_lightning.cli.parser import Parser

FORMATS = ("safetensors", "torchvision", "timm", "onnx", "hub")


def main(argv: Sequence[str]) -> int:
    """Export as the arguments say; return the exit code."""
    return guard_command(_main, argv)


def _parser() -> Parser:
    parser = Parser("simclr export", description="Write a run's encoder for other libraries, and try it there.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run's folder or an exported encoder")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder, or a file named as the format's files are")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="(default safetensors)")
    parser.add_argument("--licence", metavar="NAME", help="of the weights, for the card, such as apache-2.0")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    return parser


def _main(words: Sequence[str]) -> int:
    asked = _parser().parse(words)
    if asked is None:
        return 0
    if os.path.lexists(asked.out) and not asked.force:  # before torch is waited for
        raise errors.UserError(f"{asked.out} exists; give another OUT, or --force to write over it")
    if asked.licence is not None and not (asked.licence.strip() and asked.licence.isprintable()):
        raise errors.mistake(f"--licence {asked.licence!r}: give its name on one line, such as apache-2.0")
    files.check_writable(asked.out)
    encoder = export.load_encoder(asked.run)
    path = export.export_as(asked.format, encoder, asked.out, about=_about(asked), force=asked.force)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, gives the same h as the run's encoder; how to load it: its card"
    )
    return 0


def _about(asked: Any) -> dict[str, str]:
    """What the run's own card says, with the licence that was given."""
    card = export.find_export(asked.run).with_name(export.CARD_NAME)
    about = export.read_sections(card.read_text("utf-8", errors="replace") if card.is_file() else "")
    return about | ({"Licence": asked.licence} if asked.licence else {})
