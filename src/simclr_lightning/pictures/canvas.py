"""What all pictures share: an off-screen canvas, colours, whole files, and names that mean nothing to Matplotlib."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simclr_lightning import files

# Matplotlib takes a second to import: only those who draw wait for it.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
RIGHT, WRONG, PLAIN = "#0072B2", "#D55E00", "#666666"
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677",
    "#AA4499", "#44AA99", "#882255", "#999933", "#888888",
)  # fmt: skip


def figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure, its sides in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    made = Canvas(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(made)
    return made


def save(figure: Figure, path: Path) -> Path:
    """Write a picture as PNG, whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as fresh, warnings.catch_warnings():
        # Letters for which no font is installed are drawn as boxes: no reason to stop or to talk.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(fresh, format="png", dpi=DPI)
    return path


def plain_name(name: str, most: int = 22) -> str:
    """A name from a folder as text to draw: short, printable, and without a meaning to Matplotlib."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    # "$" would begin a formula, and a leading "_" would leave the class out of the legend.
    return f"{' ' if name.startswith('_') else ''}{name}".replace("$", r"\$")


def short(value: Any) -> str:
    """A setting's value as few letters."""
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def shades(count: int) -> list[Any]:
    """Colours in order, dark to light, told apart by colour-blind readers too; one alone is blue."""
    if count == 1:
        return [RIGHT]
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * place / (count - 1)) for place in range(count)]
