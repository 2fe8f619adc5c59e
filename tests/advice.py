"""Take the advice out of what a program printed."""

from __future__ import annotations

import re

import pytest


def advised(capsys: pytest.CaptureFixture[str], pattern: str) -> tuple[str, ...]:
    """Return what the pattern's groups take from all that was printed since the last look."""
    return taken(pattern, "".join(capsys.readouterr()))


def taken(pattern: str, printed: str) -> tuple[str, ...]:
    """Return what the pattern's groups take from a text."""
    found = re.search(pattern, printed, re.MULTILINE)
    assert found, printed
    return found.groups()
