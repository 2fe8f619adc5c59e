"""Write and read an exported encoder: a safetensors file with the architecture in its header, and a card."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from simclr_lightning import files
from simclr_lightning.encoders import Encoder, build
from simclr_lightning.encoders.weights import FILE_NAME, FORMAT, FORMAT_VERSION, digest, find_export, read_export
from simclr_lightning.export.card import card_text, sections

CARD_NAME: Final = "card.md"
_FULL: Final = 1 << 20  # free bytes below which a disk counts as full


def export_encoder(encoder: Encoder, folder: Path, *, card: Mapping[str, Any], size: int) -> Path:
    """Write ``folder/encoder.safetensors`` and ``folder/card.md``; return the path of the first.

    Each file is written atomically, and the encoder does not change. Only one process may export to a folder at a time.

    Args:
        encoder: from ``resnet``, ``timm_encoder`` or ``build``; it may be compiled or have synchronized BatchNorm.
        folder: created if it does not exist.
        card: plain values for the card by title: ``data``, ``recipe``, ``scores``, ``licence`` and others. Each is a
            string, a number, a list or a mapping.
        size: side in pixels of the evaluation crop, which `load_encoder` returns as ``encoder.size``.

    Raises:
        ValueError: size is below 1.
        OSError: the folder cannot be written.
    """
    if size < 1:
        raise ValueError(f"size is {size}: it must be at least 1 pixel")
    encoder = getattr(encoder, "_orig_mod", encoder)  # removes the wrapper of torch.compile
    folder = Path(folder)
    path = folder / FILE_NAME
    write_encoder(encoder, path, size=size)
    files.write_text(folder / CARD_NAME, card_text(encoder, sections(card), size))
    return path


def write_encoder(encoder: Encoder, path: Path, *, size: int) -> None:
    """Write the safetensors file with its header atomically; its keys are those of torchvision or timm."""
    state = plain_state(encoder)
    spec = json.dumps(encoder.spec)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "spec": spec,
        "size": str(size),
        "sha256": digest(state, spec, str(size)),
    }
    write(path, lambda target: save_file(state, target, metadata=metadata))


def plain_state(encoder: Encoder) -> dict[str, Tensor]:
    """Return the state dict of ``encoder.body`` on the CPU, copied: safetensors needs contiguous, unshared tensors."""
    return {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in encoder.body.state_dict().items()
    }


def load_encoder(folder_or_file: str | Path) -> Encoder:
    """Load an exported encoder; return it in evaluation mode, its ``size`` the side of the evaluation crop in pixels.

    Args:
        folder_or_file: an exported folder, its ``encoder.safetensors``, or the folder of a run.

    Raises:
        FileNotFoundError: there is no exported encoder.
        ValueError: the file is damaged or not an export, or this version cannot build its encoder.
    """
    path = find_export(folder_or_file)
    state, header = read_export(path)
    assert header is not None
    try:
        if header.spec.get("factory") == "resnet":
            # Shapes are compared without memory first: a damaged header may describe a huge network.
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
        raise ValueError(f"its weights do not match its header, first at {wrong[0]}")


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file atomically; its folder is created.

    Args:
        path: the file.
        fill: writes the content to the path that it is given.

    Raises:
        OSError: the folder cannot be written, or the disk is full (for which safetensors and torch raise other errors).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.whole(path) as fresh:
            fill(fresh)
            fresh.chmod(0o666 & ~_umask())  # safetensors makes files that only the owner can read
    except (SafetensorError, RuntimeError) as error:
        if shutil.disk_usage(path.parent).free < _FULL or "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _umask() -> int:
    """Return the umask of the process; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
