"""The card of an encoder: what it is, from what it came, how to prepare images and how to load it."""

import re
from collections.abc import Mapping
from typing import Any, Final

from simclr_lightning.encoders import Encoder

_SECTIONS: Final = ("data", "recipe", "scores", "licence")
_NOT_STATED: Final = "not stated"
_PREPARE: Final = "How to prepare images"
OWN_CODE: Final = """\
from simclr_lightning import load_encoder

encoder = load_encoder("this/folder")  # eval mode
h = encoder(images)  # images (N, 3, {size}, {size}) -> h (N, {width})
"""


def sections(card: Mapping[str, Any]) -> dict[str, str]:
    """Title -> Markdown of what a card says: the four that every card has first, then the others.

    Args:
        card: plain values, each a text, a number, a list or a mapping.
    """
    titles = [*_SECTIONS, *(key for key in card if key not in _SECTIONS)]
    return {title.capitalize(): "\n".join(_entries(card.get(title, _NOT_STATED))) for title in titles}


def read_sections(text: str) -> dict[str, str]:
    """The same from a written card: everything before how to prepare images."""
    about = text.partition(f"## {_PREPARE}\n")[0]
    parts = re.split(r"^## (.+)\n", about, flags=re.MULTILINE)[1:]
    found = {title: body.strip() for title, body in zip(parts[::2], parts[1::2], strict=True)}
    return sections({}) | {title: body or _NOT_STATED for title, body in found.items()}


def card_text(
    encoder: Encoder, about: Mapping[str, str], size: int, *, code: str = OWN_CODE, normalises: bool = True
) -> str:
    """The whole card.

    Args:
        encoder: whose card it is.
        about: from `sections` or `read_sections`.
        size: side in pixels of the evaluation crop.
        code: Python that loads the file; ``{size}`` and ``{width}`` in it are filled in.
        normalises: whether the normalisation of the input happens inside the file's model.
    """
    lines = [f"# {title_of(encoder)}", "", f"Image -> h of {encoder.feature_dim} numbers.", ""]
    for title, body in about.items():
        lines += [f"## {title}", "", body, ""]
    lines += [f"## {_PREPARE}", "", _preparation(encoder, size, normalises=normalises), ""]
    lines += ["## How to load", "", "```python"]
    lines += [*code.replace("{size}", str(size)).replace("{width}", str(encoder.feature_dim)).splitlines(), "```", ""]
    lines += ["The architecture, in the file's header as `spec`:", "", *_entries(encoder.spec), ""]
    return "\n".join(lines)


def title_of(encoder: Encoder) -> str:
    """One line: what it is."""
    spec = encoder.spec
    name = f"ResNet-{spec['depth']}" if spec["factory"] == "resnet" else spec["name"]
    return f"{name}, pretrained with SimCLR"


def _preparation(encoder: Encoder, size: int, *, normalises: bool) -> str:
    mean, std = encoder.spec.get("mean"), encoder.spec.get("std")
    values = f"with mean {mean} and std {std}" if mean is not None else "no normalisation"
    inside = "Normalisation happens inside" if normalises else "Then, outside the model, normalisation"
    return (
        f"RGB, upright; the centre 87.5 % resized to {size} x {size} (bicubic, antialiased), "
        f"images of up to 32 pixels whole; floats in [0, 1]. {inside}: {values}."
    )


def _entries(value: Any) -> list[str]:
    """Return a value as Markdown lines: a mapping or a list as bullets, anything else as one line."""
    if isinstance(value, Mapping):
        return [f"- {key}: {_number(entry)}" for key, entry in value.items()] or ["none"]
    if isinstance(value, list | tuple):
        return [f"- {_number(entry)}" for entry in value] or ["none"]
    return [_number(value)]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
