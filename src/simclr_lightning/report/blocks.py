"""A report as a list of blocks, and the two ways to write it: Markdown, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain sentences; strong ones are what a reader came for."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of lines."""

    items: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is shown, and the number that it sorts by where it is one."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with a heading for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """A PNG in the report's folder."""

    file: str
    caption: str


Block = Heading | Paragraph | Bullets | Table | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report as Markdown, its pictures as links to files beside it."""
    return "\n\n".join([f"# {_escaped(title)}", *map(_markdown, blocks)]) + "\n"


def html(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The report as one HTML file: pictures inside it, tables that sort by a click on a heading, no address used."""
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
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(text.split())
    for letter in "\\`*_[]|<":
        text = text.replace(letter, f"\\{letter}")
    return text
