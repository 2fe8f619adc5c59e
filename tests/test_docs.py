"""The functions that docs/architecture.md names exist, and its table has the layers of pyproject.toml."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
STEPS = sorted(set(re.findall(r"^\d+\. `([\w.]+)`", PAGE, re.MULTILINE)))


def found(name: str) -> Any:
    """Import the longest module in a dotted name and return the attribute that the rest names."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(["simclr_lightning", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(name)


@pytest.mark.parametrize("name", STEPS)
def test_every_step_of_the_walks_exists(name: str) -> None:
    assert callable(found(name)) or isinstance(found(name), property)


def test_the_table_of_layers_is_that_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contract = next(one["layers"] for one in contracts if one["name"] == "Imports point one way")
    expected = [set(re.findall(r"\w+", layer)) for layer in contract]
    table: list[set[str]] = []
    for number, names in re.findall(r"^\|\s*(\d*)\s*\| (.*?) \|", PAGE, re.MULTILINE):
        if number:
            table.append(set())
        if table:
            table[-1] |= set(re.findall(r"`(\w+)`", names))
    assert table == expected
