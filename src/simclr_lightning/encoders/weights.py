"""Load weights into an encoder from an export, a run, or a state dict of torchvision or timm.

No code from a file is ever run: safetensors files hold none, and pickles are read with ``weights_only=True``.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simclr_lightning.encoders.encoder import Encoder
from simclr_lightning.text import first_line

FORMAT: Final = "simclr-lightning encoder"
FORMAT_VERSION: Final = 1
FILE_NAME: Final = "encoder.safetensors"
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

# Prefixes of an encoder's keys in other state dicts. The first prefix with the most matching keys is used.
_PREFIXES: Final = ("", "encoder.", "encoder.model.", "module.", "module.encoder.", "model.", "backbone.")
_CLASSIFIERS: Final = ("fc.", "head.", "heads.", "classifier.", "last_linear.")


@dataclass(frozen=True)
class Header:
    """The description of the encoder in an export: ``spec`` for ``build``; ``size``, the evaluation crop's side."""

    spec: dict[str, Any]
    size: int


def load_weights(encoder: Encoder, source: str | Path) -> None:
    """Copy weights into the encoder, in place. After an error, the encoder is unchanged.

    Args:
        encoder: from ``resnet``, ``timm_encoder``, ``torchvision_encoder``, ``as_encoder`` or ``build``.
        source: "imagenet" for torchvision's ImageNet weights (downloaded once; ResNet 18 to 152 with width 1), or a
            path: an export (the folder or its ``encoder.safetensors``), the folder of a run, or a file with a state
            dict of torchvision, timm or Lightning (``.safetensors``, ``.pt``, ``.pth``, ``.ckpt``). Classifiers are
            dropped. "imagenet" and exports also set the input normalization.

    Raises:
        FileNotFoundError: there is no such file, or a folder holds no weights.
        ValueError: the file is damaged, holds more than plain tensors, or does not fit the encoder.
    """
    header: Header | None = None
    if str(source) == "imagenet":
        state = _imagenet(encoder)
    else:
        path = _find(source)
        if path.suffix == ".safetensors":
            state, header = read_export(path, required=False)
        else:
            state = _unpickled(path)
    expected = encoder.body.state_dict()
    state = _own_keys(state, expected)
    _check_fit(state, expected, source)
    if str(source) == "imagenet":
        encoder.set_normalisation(IMAGENET_MEAN, IMAGENET_STD)
    elif header is not None:
        encoder.set_normalisation(header.spec.get("mean"), header.spec.get("std"))
    encoder.body.load_state_dict(state, strict=False)


def find_export(path: str | Path) -> Path:
    """Return the path of an exported encoder, ``encoder.safetensors``.

    Args:
        path: the file, its folder, or the folder of a run, which holds the file in ``exported``.

    Raises:
        FileNotFoundError: the path does not exist, or the folder holds no exported encoder.
    """
    path = Path(path)
    for candidate in (path, path / FILE_NAME, path / "exported" / FILE_NAME):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} holds no {FILE_NAME}, nor exported/{FILE_NAME}; give an exported encoder or a finished run"
        )
    raise FileNotFoundError(f"{path} does not exist; give an exported encoder or a run's folder")


def read_export(path: Path, *, required: bool = True) -> tuple[dict[str, Tensor], Header | None]:
    """Return the tensors of a safetensors file and, if it is an exported encoder, its header; else None.

    Raises:
        ValueError: the file or its header is damaged, or ``required`` is true and it is not an exported encoder.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or is not a safetensors file: {first_line(error)[:200]}") from None
    if metadata.get("format") != FORMAT:
        if required:
            raise ValueError(f"{path} holds weights but is not an exported encoder; load it through model.weights")
        return state, None
    header = _header(path, metadata)
    if metadata.get("sha256") != digest(state, metadata["spec"], metadata["size"]):
        raise ValueError(f"{path} is damaged: its content does not match its checksum; export it again")
    return state, header


def digest(state: Mapping[str, Tensor], *texts: str) -> str:
    """Return the SHA-256, as 64 hex digits, of some texts and of every tensor's name, dtype, shape and bytes."""
    sha = hashlib.sha256("\n".join(texts).encode())
    for key in sorted(state):
        tensor = state[key].detach().to("cpu").contiguous()
        sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _header(path: Path, metadata: Mapping[str, str]) -> Header:
    try:
        version, size = int(metadata["format_version"]), int(metadata["size"])
        spec = json.loads(metadata["spec"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header: {first_line(error)[:200]}") from None
    if version > FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}, newer than {FORMAT_VERSION}: upgrade simclr-lightning")
    if not isinstance(spec, dict) or size < 1:
        raise ValueError(f"{path} has a damaged header: spec {spec!r:.40}, size {size}")
    return Header(spec, size)


def _find(source: str | Path) -> Path:
    if "://" in str(source):
        raise ValueError(f"model.weights={source} is a web address; download the file and give its path")
    path = Path(source)
    last = path / "checkpoints" / "last.ckpt"
    if last.is_file() and not (path / "exported" / FILE_NAME).is_file():
        return last  # a run that has not finished
    try:
        return find_export(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model.weights={source}: {error}") from None


def _imagenet(encoder: Encoder) -> dict[str, Tensor]:
    depth, width = encoder.spec.get("depth"), encoder.spec.get("width")
    if encoder.spec.get("factory") != "resnet" or depth == 10 or width != 1 or encoder.spec["stem"] != "imagenet":
        raise ValueError(
            "model.weights=imagenet needs ResNet 18, 34, 50, 101 or 152 with model.encoder.width=1 and "
            "model.encoder.stem=imagenet; for timm's and torchvision's models set model.encoder.pretrained=true"
        )
    weights = torchvision.models.get_model_weights(f"resnet{depth}").DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"model.weights=imagenet: cannot download {weights.url}: {first_line(error)[:200]}") from None
    return dict(state)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file of torch.save, at the top level or under ``state_dict`` or ``model``."""
    refusal = ValueError(
        f"model.weights={path} was not loaded: it is damaged, or holds more than plain tensors. No code in it was run; "
        "give a file with a state dict"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript archives warn and then fail; only the failure is reported
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"model.weights={path} cannot be read: {first_line(error)[:200]}") from None
    except Exception:  # torch raises many types for a damaged or hostile file
        raise refusal from None
    for name in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in loaded.items()
    ):
        raise ValueError(f"model.weights={path} holds no state dict, which maps names to dense tensors")
    return dict(loaded)


def _is_plain(value: Any) -> bool:
    """Return whether a value is a dense tensor with data, neither sparse nor on the meta device."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _own_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a state dict that belong to the encoder, under the encoder's keys."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # torch.compile's prefix
    parts = [
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for prefix in _PREFIXES
    ]
    best = max(parts, key=lambda part: len(part.keys() & expected.keys()))
    return {key: value for key, value in best.items() if key in expected or not key.startswith(_CLASSIFIERS)}


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise ValueError, in one line, if entries are missing, unexpected or of another shape."""
    # Old files lack BatchNorm's num_batches_tracked.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(value.shape)} and should be {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    faults = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise ValueError(f"model.weights={source} does not fit this encoder; {'; '.join(faults)}")


def _some(names: Sequence[str]) -> str:
    """Return the first two names and the number of the others, as text."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
