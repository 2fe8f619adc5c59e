"""Malformed command lines and data."""

from __future__ import annotations

import random
import shlex
from pathlib import Path

from _faults.child import CRASHED, SMALL, Child, Failures, array_file, program
from _faults.commands import WRONG_COMMANDS, WRONG_OVERRIDES
from _faults.files import array_files, folders, things
from _faults.values import wrong_overrides


def malformed(folder: Path) -> list[tuple[str, ...]]:
    """Write all malformed files into the folder and return the command lines that must be refused."""
    good = ("train", *SMALL, f"data.path={array_file(folder)}")
    things(folder)
    lines = [(*good, override) for override in (*wrong_overrides(), *WRONG_OVERRIDES.splitlines())]
    lines += [("train", *SMALL, f"data.path={bad}") for bad in array_files(folder)]
    lines += [("train", *SMALL[1:], "data=folder", f"data.path={bad}") for bad in folders(folder)]
    lines += [tuple(shlex.split(line)) for line in WRONG_COMMANDS.splitlines()]
    lines += [("evaluate",), ("evaluate", "nowhere"), ("embed", "a"), ("embed", "a", "b", "c"), ("tarin",)]
    lines += [("embed", str(folder), str(folder), str(folder / "x.npz"))]
    return lines


def inputs(trials: int, folder: Path) -> Failures:
    """Run malformed command lines: each must end with a short message, without traceback, exit 0 or a hang."""
    lines, output = malformed(folder), folder / "output"
    random.Random(3).shuffle(lines)
    if trials > len(lines):
        yield f"only {len(lines)} malformed command lines are listed, {trials} were asked for"
    good = program("train", *SMALL, f"data.path={folder / 'images.npz'}", "trainer.max_steps=1")
    assert Child(good, output).code() == 0, "the command without a fault must succeed"
    for words in lines[:trials]:
        code, text = Child(program(*words), output).code(), output.read_text()
        if code in (0, None, CRASHED) or "Traceback" in text or len(text.strip().splitlines()) > 8:
            yield f"{' '.join(words[-2:])}: exit {code}: {text[-300:]}"
