"""Write the card of an encoder: architecture, data, scores, how to prepare images and how to load the file."""

import re
from collections.abc import Mapping
from typing import Any, Final

from simclr_lightning.encoders import Encoder

_SECTIONS: Final = ("data", "recipe", "scores", "licence")
_NOT_STATED: Final = "not stated"
_PREPARE: Final = "How to prepare images"


def sections(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the sections of a card as {title: Markdown}: data, recipe, scores and licence first, then the others.

    Args:
        card: plain values by title, each a string, a number, a list or a mapping. A missing one is "not stated".

    Example:
        >>> sections({"data": "photos", "scores": {"knn_top1": 0.81234}})["Scores"]
        '- knn_top1: 0.8123'
    """
    titles = [*_SECTIONS, *(key for key in card if key not in _SECTIONS)]
    return {title.capitalize(): "\n".join(_entries(card.get(title, _NOT_STATED))) for title in titles}


def read_sections(text: str) -> dict[str, str]:
    """Return the sections of a written card as `sections` does, up to "How to prepare images".

    Args:
        text: content of card.md; "" gives sections that are not stated.
    """
    about = text.partition(f"## {_PREPARE}\n")[0]
    parts = re.split(r"^## (.+)\n", about, flags=re.MULTILINE)[1:]
    found = {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    return sections({}) | {title: body or _NOT_STATED for title, body in found.items()}


def card_text(
    encoder: Encoder, about: Mapping[str, str], size: int, *, code: str | None = None, normalizes: bool = True
) -> str:
    """Return the whole card as Markdown.

    Args:
        encoder: which the card describes.
        about: from `sections` or `read_sections`.
        size: side in pixels of the evaluation crop.
        code: Python that loads the file; ``{size}`` and ``{width}`` are replaced by numbers. None: `own_code`.
        normalizes: whether the model in the file normalizes its input itself.
    """
    lines = [f"# {title_of(encoder)}", "", f"Image -> h of {encoder.feature_dim} numbers.", ""]
    for title, body in about.items():
        lines += [f"## {title}", "", body, ""]
    lines += [f"## {_PREPARE}", "", _preparation(encoder, size, normalizes=normalizes), ""]
    lines += ["## How to load", "", "```python"]
    code = own_code(encoder, "this/folder") if code is None else code
    lines += [*code.replace("{size}", str(size)).replace("{width}", str(encoder.feature_dim)).splitlines(), "```", ""]
    lines += ["The architecture, in the file's header as `spec`:", "", *_entries(encoder.spec), ""]
    return "\n".join(lines)


def own_code(encoder: Encoder, path: str) -> str:
    """Return Python that loads an export of this library from a path."""
    factory, more = encoder.spec.get("factory"), ")  # eval mode"
    if factory is None:
        more = f", encoder=NET)  # NET is a new {encoder.spec.get('name')}; eval mode"
    elif "." in factory:
        more = f', trusted=["{factory.partition(".")[0]}"])  # imports {factory}; eval mode'
    return f"""\
from simclr_lightning import load_encoder

encoder = load_encoder("{path}"{more}
h = encoder(images)  # images (N, 3, {{size}}, {{size}}) -> h (N, {{width}})
"""


def title_of(encoder: Encoder) -> str:
    """Return the title of the card, such as "ResNet-18, pretrained with SimCLR"."""
    spec = encoder.spec
    own = spec.get("name") or str(spec["factory"]).rpartition(".")[2]
    name = f"ResNet-{spec['depth']}" if spec["factory"] == "resnet" else own
    return f"{name}, pretrained with SimCLR"


def _preparation(encoder: Encoder, size: int, *, normalizes: bool) -> str:
    mean, std = encoder.spec.get("mean"), encoder.spec.get("std")
    values = f"mean {mean} and std {std}" if mean is not None else "none"
    inside = "Normalization, inside the model" if normalizes else "Normalization, before the model"
    return (
        f"RGB, upright. The central 87.5 % of each side (images of up to 32 pixels: the whole image), resized to "
        f"{size} x {size} (bicubic, antialiased). Floats in [0, 1]. {inside}: {values}."
    )


def _entries(value: Any) -> list[str]:
    """Return a value as lines of Markdown: a mapping or a list as bullets, other values as one line."""
    if isinstance(value, Mapping):
        return [f"- {key}: {_number(entry)}" for key, entry in value.items()] or ["none"]
    if isinstance(value, list | tuple):
        return [f"- {_number(entry)}" for entry in value] or ["none"]
    return [_number(value)]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
