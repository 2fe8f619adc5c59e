"""Run ``simclr export RUN OUT --format F``: write an encoder in the format of another library, with its card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr_lightning import export, files
from simclr_lightning.app import errors, runs
from simclr_lightning.cli.parser import Parser, trusting

FORMATS = ("safetensors", "torchvision", "timm", "onnx", "hub")


def main(argv: Sequence[str]) -> int:
    """Run ``simclr export`` with these arguments; return the exit code."""
    return _parser().run(_main, argv)


def _parser() -> Parser:
    parser = Parser("simclr export", description="Write a run's encoder for another library, and load it there.")
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run's folder or an exported encoder")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder, or a file with the suffix of the format")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="(default safetensors)")
    parser.add_argument("--licence", metavar="NAME", help="license of the weights for the card, such as apache-2.0")
    trusting(parser)
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    return parser


def _main(asked: Any) -> int:
    if os.path.lexists(asked.out) and not asked.force:  # before torch is imported, which takes seconds
        raise errors.UserError(f"{asked.out} exists; give another OUT, or --force to overwrite it")
    if asked.licence is not None and not (asked.licence.strip() and asked.licence.isprintable()):
        raise errors.mistake(f"--licence {asked.licence!r}: give the license's name on one line, such as apache-2.0")
    files.check_writable(asked.out)
    encoder = runs.load_export(asked.run, asked.trusted)
    path = export.export_as(asked.format, encoder, asked.out, about=_about(asked), force=asked.force)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, same h as the run's encoder; its card has the code to load it")
    return 0


def _about(asked: Any) -> dict[str, str]:
    """Return the sections of the run's card by title, with the license of ``--licence``."""
    card = export.find_export(asked.run).with_name(export.CARD_NAME)
    about = export.read_sections(card.read_text("utf-8", errors="replace") if card.is_file() else "")
    return about | ({"Licence": asked.licence} if asked.licence else {})
