"""Convert a report, a list of blocks, to Markdown or to one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain sentences; ``strong`` for the main result."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    """A bulleted list, one string per item."""

    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number by which it is sorted (None: sorted as text)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a heading for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """A PNG file in the folder of the report, with its caption."""

    file: str
    caption: str


Block = Heading | Paragraph | Bullets | Table | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Return the report as Markdown; pictures are links to PNG files in the same folder."""
    return "\n\n".join([f"# {_escaped(title)}", *map(_markdown, blocks)]) + "\n"


def html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Return the report as one HTML page: embedded pictures, tables that a click on a heading sorts, no external links.

    Args:
        title: of the page.
        blocks: its content.
        folder: contains the PNG files of the pictures.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def data_uri(file: str) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / file).read_bytes()).decode("ascii")

    parts: list[dict[str, Any]] = [{"kind": type(block).__name__, "block": block} for block in blocks]
    template = environment.get_template("template.html.jinja")
    return template.render(title=title, parts=parts, data_uri=data_uri)


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_escaped(text)}"
        case Paragraph(text, strong):
            return f"**{_escaped(text)}**" if strong else _escaped(text)
        case Bullets(items):
            return "\n".join(f"- {_escaped(item)}" for item in items)
        case Picture(file, caption):
            return f"![{_escaped(caption)}]({file})\n\n{_escaped(caption)}"
        case Table(columns, rows):
            lines = [[_escaped(name) for name in columns], ["---"] * len(columns)]
            lines += [[_escaped(cell.text) for cell in row] for row in rows]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Return text on one line, with the special characters of Markdown escaped."""
    text = " ".join(text.split())
    for letter in "\\`*_[]|<":
        text = text.replace(letter, f"\\{letter}")
    return text
