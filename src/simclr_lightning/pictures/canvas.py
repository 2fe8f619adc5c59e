"""Shared by all pictures: an off-screen canvas, colors, atomic PNG files, and names without special characters."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simclr_lightning import files
from simclr_lightning.stopping import check

# Importing Matplotlib takes a second, so the functions that draw import it.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
RIGHT, WRONG, PLAIN = "#0072B2", "#D55E00", "#666666"
CLASS_COLORS = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677",
    "#AA4499", "#44AA99", "#882255", "#999933", "#888888",
)  # fmt: skip


def figure(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return an empty figure, width and height in inches; raise `Stopped` if a signal has come."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    check()
    made = Canvas(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(made)
    return made


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically; return the path. The folder is created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as fresh, warnings.catch_warnings():
        # Matplotlib draws a box for a character that no installed font has; its warning is not shown.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(fresh, format="png", dpi=DPI)
    return path


def plain_name(name: str, most: int = 22) -> str:
    """Return a name as text to draw: at most ``most`` printable characters, none of them special to Matplotlib."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    # Matplotlib reads "$" as the start of a formula, and leaves a label with a leading "_" out of the legend.
    return f"{' ' if name.startswith('_') else ''}{name}".replace("$", r"\$")


def short(value: Any) -> str:
    """Return the value of a setting as short text; a dash for None."""
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)


def shades(count: int) -> list[Any]:
    """Return colors from dark to light, which color-blind readers can distinguish; a single color is blue."""
    if count == 1:
        return [RIGHT]
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * place / (count - 1)) for place in range(count)]
