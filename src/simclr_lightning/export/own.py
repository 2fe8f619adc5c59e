"""Write and read an exported encoder: a safetensors file with the architecture in its header, and a card."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from simclr_lightning import files
from simclr_lightning.encoders import Encoder, UntrustedError, as_encoder, build
from simclr_lightning.encoders.own import recipe_of
from simclr_lightning.encoders.weights import FILE_NAME, FORMAT, FORMAT_VERSION, digest, find_export, read_export
from simclr_lightning.export.card import card_text, sections

CARD_NAME: Final = "card.md"
_FULL: Final = 1 << 20  # free bytes below which a disk counts as full


def export_encoder(
    encoder: nn.Module,
    folder: str | Path,
    *,
    card: Mapping[str, Any] | None = None,
    size: int,
    channels: int = 3,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/encoder.safetensors`` and ``folder/card.md``; return the path of the first.

    Each file is written atomically, and the encoder does not change. Only one process may export to a folder at a time.

    Args:
        encoder: any encoder; it may be compiled or have synchronized BatchNorm. The file of one that is not of this
            package has the dotted name of its class and its ``arguments``, if they make the same encoder. Else
            `load_encoder` needs the module itself (``encoder=``), as for a class of ``__main__``.
        folder: created if it does not exist.
        card: plain values for the card by title: ``data``, ``recipe``, ``scores``, ``licence`` and others. Each is a
            string, a number, a list or a mapping.
        size: side in pixels of the evaluation crop, which `load_encoder` returns as ``encoder.size``.
        channels: of the images.
        arguments: plain keyword arguments of the class of an encoder that is not of this package; None for none.

    Raises:
        ValueError: size is below 1, the arguments are no plain values, or they do not make the same encoder.
        OSError: the folder cannot be written.
    """
    if size < 1:
        raise ValueError(f"size is {size}: it must be at least 1 pixel")
    module = getattr(encoder, "_orig_mod", encoder)  # removes the wrapper of torch.compile
    encoder = as_encoder(module, {"factory": None, "arguments": None}, size=size, channels=channels)
    if encoder is not module:
        encoder.spec |= recipe_of(module, arguments, _images(module, size, channels))
        if arguments is not None and encoder.spec["factory"] is None:
            raise ValueError(f"{type(module).__name__}(**arguments) is not this encoder; give all of its arguments")
    path = Path(folder) / FILE_NAME
    write_encoder(encoder, path, size=size)
    files.write_text(Path(folder) / CARD_NAME, card_text(encoder, sections(card or {}), size))
    return path


def _images(module: nn.Module, size: int, channels: int) -> Tensor:
    like = next(module.parameters(), torch.empty(0))
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)).to(like)


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


def load_encoder(
    folder_or_file: str | Path, *, trusted: Sequence[str] = (), encoder: nn.Module | None = None
) -> Encoder:
    """Load an exported encoder; return it in evaluation mode, its ``size`` the side of the evaluation crop in pixels.

    Args:
        folder_or_file: an exported folder, its ``encoder.safetensors``, or the folder of a run.
        trusted: packages whose code the file may name as its encoder, such as ``["mypkg"]``. They are imported, and the
            class in the file is called with the arguments in the file. No other code is imported or run.
        encoder: a new module of the architecture in the file, which is filled and returned as ``encoder.body``; needed
            for a class that cannot be imported by name. Nothing is imported then.

    Raises:
        FileNotFoundError: there is no exported encoder.
        UntrustedError: the encoder is code of a package that is not in ``trusted``; nothing was imported.
        ValueError: the file is damaged or not an export, or this version cannot build its encoder.
    """
    path = find_export(folder_or_file)
    state, header = read_export(path)
    assert header is not None
    try:
        if header.spec.get("factory") == "resnet" and encoder is None:
            # Shapes are compared without memory first: a damaged header may describe a huge network.
            with torch.device("meta"):
                _check_fit(state, build(header.spec))
        made = (
            build(header.spec, trusted=trusted)
            if encoder is None
            else as_encoder(encoder, header.spec, size=header.size)
        )
        _check_fit(state, made)
    except UntrustedError as error:
        raise UntrustedError(error.name, path) from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from None
    made.body.load_state_dict(state)
    made.size = header.size
    return made.eval()


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
