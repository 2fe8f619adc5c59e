"""Weights to start an encoder from: exports, runs, state dicts of torchvision and timm.

Nothing here runs code from a file: safetensors hold none, and pickles are read with ``weights_only=True``.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor

if TYPE_CHECKING:
    from simclr_lightning.encoders import Encoder

FORMAT: Final = "simclr-lightning encoder"
FORMAT_VERSION: Final = 1
FILE_NAME: Final = "encoder.safetensors"
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

# where others keep an encoder inside a larger state dict; the first with the most fitting keys is taken
_PREFIXES: Final = ("", "encoder.", "encoder.model.", "module.", "module.encoder.", "model.", "backbone.")
_CLASSIFIERS: Final = ("fc.", "head.", "heads.", "classifier.", "last_linear.")


@dataclass(frozen=True)
class Header:
    """What an export says of its encoder: ``spec`` for ``build``, ``size`` the evaluation crop's side."""

    spec: dict[str, Any]
    size: int


def load_weights(encoder: "Encoder", source: str | Path) -> None:
    """Copy weights into the encoder, in place; all of them, or none and an error.

    Args:
        encoder: from ``resnet``, ``timm_encoder`` or ``build``.
        source: "imagenet" for torchvision's ImageNet weights (downloaded once; ResNet 18 to 152 of width 1),
            or a path: an exported folder or its ``encoder.safetensors``, a run's folder, or a state dict of
            torchvision, timm or a Lightning checkpoint (``.safetensors``, ``.pt``, ``.pth``, ``.ckpt``).
            Classifiers are dropped. "imagenet" and exports bring their input normalisation along.

    Raises:
        FileNotFoundError: nothing is at the path.
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
    """Return the exported file that a path means: itself, in the folder, or in a run's ``exported`` folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path)
    for candidate in (path, path / FILE_NAME, path / "exported" / FILE_NAME):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} holds no {FILE_NAME}, nor exported/{FILE_NAME}; give an export or a finished run"
        )
    raise FileNotFoundError(f"{path} does not exist; give an exported encoder or a run's folder")


def read_export(path: Path, *, required: bool = True) -> tuple[dict[str, Tensor], Header | None]:
    """Return the tensors of a safetensors file and, where an encoder's export wrote one, its header.

    Raises:
        ValueError: the file is damaged, or its header is; with ``required``, no header at all too.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not safetensors: {_first_line(error)}") from None
    if metadata.get("format") != FORMAT:
        if required:
            raise ValueError(f"{path} holds weights but is not an exported encoder; load it through model.weights")
        return state, None
    header = _header(path, metadata)
    if metadata.get("sha256") != digest(state, metadata["spec"], metadata["size"]):
        raise ValueError(f"{path} is damaged: its contents do not match its checksum; export it again")
    return state, header


def digest(state: Mapping[str, Tensor], *texts: str) -> str:
    """Return the SHA-256, in hex, of some texts and of every tensor's name, dtype, shape and bytes."""
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
        raise ValueError(f"{path} has a damaged header: {_first_line(error)}") from None
    if version > FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}, newer than {FORMAT_VERSION}: upgrade simclr-lightning")
    if not isinstance(spec, dict) or size < 1:
        raise ValueError(f"{path} has a damaged header: spec {spec!r:.40}, size {size}")
    return Header(spec, size)


def _find(source: str | Path) -> Path:
    if "://" in str(source):
        raise ValueError(f"model.weights={source}: web addresses are not read; download the file and give its path")
    path = Path(source)
    last = path / "checkpoints" / "last.ckpt"
    if last.is_file() and not (path / "exported" / FILE_NAME).is_file():
        return last  # a run that has not finished
    try:
        return find_export(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"model.weights={source}: {error}") from None


def _imagenet(encoder: "Encoder") -> dict[str, Tensor]:
    depth, width = encoder.spec.get("depth"), encoder.spec.get("width")
    if encoder.spec["factory"] != "resnet" or depth == 10 or width != 1 or encoder.spec["stem"] != "imagenet":
        raise ValueError(
            "model.weights=imagenet: torchvision has them for ResNet 18, 34, 50, 101 and 152 with "
            "model.encoder.width=1 and model.encoder.stem=imagenet; for timm's models set model.encoder.pretrained=true"
        )
    weights = torchvision.models.get_model_weights(f"resnet{depth}").DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"model.weights=imagenet: {weights.url} could not be fetched: {_first_line(error)}") from None
    return dict(state)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file of torch.save, by itself or under ``state_dict`` or ``model``."""
    refusal = ValueError(
        f"model.weights={path} was refused: it is damaged, or holds more than plain tensors (nothing in it was run)"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript archives warn, then fail, which is what is reported
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"model.weights={path} cannot be read: {_first_line(error)}") from None
    except Exception:  # a damaged or hostile file fails in many ways, all of which mean the same here
        raise refusal from None
    for name in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
            break
    if not isinstance(loaded, dict) or not all(
        isinstance(key, str) and _is_plain(value) for key, value in loaded.items()
    ):
        raise ValueError(f"model.weights={path} holds no state dict (names -> dense tensors)")
    return dict(loaded)


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with all its numbers: not sparse, and not a shape alone."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _own_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a state dict that is the encoder's, under the encoder's own keys."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # torch.compile's prefix
    parts = [
        {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for prefix in _PREFIXES
    ]
    best = max(parts, key=lambda part: len(part.keys() & expected.keys()))
    return {key: value for key, value in best.items() if key in expected or not key.startswith(_CLASSIFIERS)}


def _check_fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise one line naming what is missing, left over or of another shape."""
    # files written before BatchNorm counted its batches do without the counts
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
    """Return the first two of the names, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
