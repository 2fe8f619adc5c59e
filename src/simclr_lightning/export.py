"""The encoder as a folder for others: safetensors that know their architecture, and a card; no training."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from simclr_lightning.encoders import Encoder, build
from simclr_lightning.encoders.weights import (
    FILE_NAME,
    FORMAT,
    FORMAT_VERSION,
    digest,
    find_export,
    read_export,
)

CARD_NAME: Final = "card.md"
_SECTIONS: Final = ("data", "recipe", "scores", "licence")


def export_encoder(encoder: Encoder, folder: Path, *, card: Mapping[str, Any], size: int) -> Path:
    """Write ``folder/encoder.safetensors`` and ``folder/card.md``; return the former's path.

    Each file appears whole or not at all, and the encoder is left as it is. One process may export to a
    folder at a time.

    Args:
        encoder: from ``resnet``, ``timm_encoder`` or ``build`` (compiled, or with synchronised BatchNorm).
        folder: made if it is not there.
        card: plain values for the card, under ``data``, ``recipe``, ``scores``, ``licence`` and any further
            titles; each a text, a number, a list or a mapping.
        size: side in pixels of the evaluation crop.

    Raises:
        ValueError: size is below 1.
        OSError: the folder cannot be written.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1 pixel")
    encoder = getattr(encoder, "_orig_mod", encoder)  # torch.compile's wrapper
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors takes neither channels_last nor shared memory; the file holds plain copies
    state = {key: _plain(value) for key, value in encoder.body.state_dict().items()}
    spec = json.dumps(encoder.spec)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "spec": spec,
        "size": str(size),
        "sha256": digest(state, spec, str(size)),
    }
    path = folder / FILE_NAME
    _write(path, lambda target: save_file(state, target, metadata=metadata))
    text = _card(encoder, card, size)
    _write(folder / CARD_NAME, lambda target: target.write_text(text, encoding="utf-8"))
    return path


def load_encoder(folder_or_file: str | Path) -> Encoder:
    """Return an exported encoder with its weights, in eval mode, its ``size`` the evaluation crop's side.

    Args:
        folder_or_file: an exported folder, its ``encoder.safetensors``, or a run's folder.

    Raises:
        FileNotFoundError: there is no export.
        ValueError: the file is damaged or not an export, or this version cannot make its encoder.
    """
    path = find_export(folder_or_file)
    state, header = read_export(path)
    assert header is not None
    try:
        if header.spec.get("factory") == "resnet":
            # shapes are compared before a damaged header can ask for more memory than there is
            with torch.device("meta"):
                _check_fit(state, build(header.spec))
        encoder = build(header.spec)
        _check_fit(state, encoder)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from None
    encoder.body.load_state_dict(state)
    encoder.size = header.size
    return encoder.eval()


def _check_fit(state: Mapping[str, Tensor], encoder: Encoder) -> None:
    expected = {key: value.shape for key, value in encoder.body.state_dict().items()}
    found = {key: value.shape for key, value in state.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise ValueError(f"its weights do not fit its header, first at {wrong[0]}")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside the path, sync it, and move it over the path."""
    temporary = path.with_name(f".{path.name}.tmp")  # the same each time: a killed export leaves one at most
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _card(encoder: Encoder, card: Mapping[str, Any], size: int) -> str:
    """Return the card: what the encoder is, the sections, how to prepare images and how to load it."""
    spec = encoder.spec
    name = f"ResNet-{spec['depth']}" if spec["factory"] == "resnet" else spec["name"]
    lines = [f"# {name}, pretrained with SimCLR", "", f"Image -> h of {encoder.feature_dim} numbers.", ""]
    titles = [*_SECTIONS, *(key for key in card if key not in _SECTIONS)]
    for title in titles:
        lines += [f"## {title.capitalize()}", "", *_entries(card.get(title, "not stated")), ""]
    mean, std = spec.get("mean"), spec.get("std")
    inside = f"with mean {mean} and std {std} " if mean is not None else "no normalisation "
    lines += [
        "## How to prepare images",
        "",
        f"RGB, upright; the centre 87.5 % resized to {size} x {size} (bicubic, antialiased), "
        f"images of up to 32 pixels whole; floats in [0, 1]. Normalisation happens inside: {inside.strip()}.",
        "",
        "## How to load",
        "",
        "```python",
        "from simclr_lightning import load_encoder",
        "",
        'encoder = load_encoder("this/folder")  # eval mode',
        f"h = encoder(images)  # images (N, 3, {size}, {size}) -> h (N, {encoder.feature_dim})",
        "```",
        "",
        "The architecture, in the file's header as `spec`:",
        "",
        *_entries(spec),
        "",
    ]
    return "\n".join(lines)


def _entries(value: Any) -> list[str]:
    """Return a value as Markdown lines: a mapping or a list as bullets, anything else as one line."""
    if isinstance(value, Mapping):
        return [f"- {key}: {_number(entry)}" for key, entry in value.items()] or ["none"]
    if isinstance(value, list | tuple):
        return [f"- {_number(entry)}" for entry in value] or ["none"]
    return [_number(value)]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
