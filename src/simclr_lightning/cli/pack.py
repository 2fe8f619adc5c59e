"""Run ``simclr pack IMAGES OUT``: write a folder of images as shards of small JPEGs, for ``data=packed``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from simclr_lightning import data
from simclr_lightning.app import errors
from simclr_lightning.app.commands import train_command
from simclr_lightning.app.config.keys import PACK_RULES
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.cli.guard import guard_command
from simclr_lightning.near_names import nearest
from simclr_lightning.run_folder import typed

USAGE: Final = (
    "usage: simclr pack IMAGES OUT [short_side=256] [quality=90] [on_corrupt=fail|skip] [max_skipped=100] "
    "[max_pixels=64000000] [full_scale=WHITE]"
)


def main(argv: Sequence[str]) -> int:
    """Run ``simclr pack`` with these arguments; return the exit code."""
    return guard_command(_main, argv, usage=USAGE)


def _main(argv: Sequence[str]) -> int:
    if len(argv) < 2:
        raise UserError(f"pack takes two folders, IMAGES and OUT\n{USAGE}", code=errors.CONFIGURATION)
    images, out = (Path(argument).expanduser() for argument in argv[:2])
    options = dict(map(_option, argv[2:]))
    packed = data.pack(images, out, **options)
    for line in packed.skipped:
        print(f"skipped: {line}")
    left = f", {len(packed.skipped):,} skipped" if packed.skipped else ""
    labels = f"{packed.classes:,} classes" if packed.classes else "no labels"
    print(f"{packed.images:,} images{left}, {labels}, {packed.bytes / 1e6:,.1f} MB in {packed.shards:,} shard(s)")
    print(f"train on them with: {train_command()} data=packed data.path={typed(out)}")
    return 0


def _option(argument: str) -> tuple[str, Any]:
    """Return the key and the value of an argument such as quality=80."""
    key, equals, text = argument.partition("=")
    if not equals or key not in PACK_RULES:
        near = nearest(key, PACK_RULES, count=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise mistake(f"{argument}: pack has no such key{hint}\n{USAGE}")
    value = int(text) if text.removeprefix("-").isdecimal() and len(text) < 20 else text
    if not PACK_RULES[key].accepts(value):
        raise mistake(f"{key}={text[:60]}: it must be {PACK_RULES[key].says}")
    return key, value
