"""Load the encoder of a run, an export or a state dict, and the network from which ``semi`` starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from simclr_lightning import checkpoint, encoders
from simclr_lightning.app.config.instantiate import make
from simclr_lightning.app.config.plain import from_plain, to_plain
from simclr_lightning.app.config.targets import check_targets, check_trusted, resolve
from simclr_lightning.app.errors import UserError, mistake
from simclr_lightning.app.runs.run import read_config
from simclr_lightning.encoders import Encoder, UntrustedError, as_encoder, weights as encoder_weights
from simclr_lightning.encoders.own import verified
from simclr_lightning.export import load_encoder
from simclr_lightning.projector import Projector
from simclr_lightning.run_folder import CONFIG, EXPORTED, flatten, read_saved_config


def encoder_of(run: Path, cfg: DictConfig) -> Encoder:
    """Return the encoder with its weights, in evaluation mode, with its ``size`` set.

    Args:
        run: a run's folder, finished or not; an exported folder or file; or a file with a state dict, whose
            architecture is ``cfg.model``.
        cfg: the configuration of an evaluation.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the weights cannot be read, or do not fit the architecture.
        UserError: ``model`` is missing for a state dict, or given for a run or an export.
    """
    if run.is_file() and not _is_export(run):
        if "model" not in cfg:
            raise mistake(f"{run} contains weights but no architecture; add it, such as model=resnet50")
        return _build(cfg.model.encoder, run, size=int(cfg.views.size))
    of_run = run.is_dir() and (run / ".hydra").is_dir()
    found = checkpoint.newest(run) if of_run and (not (run / EXPORTED).is_dir() or _is_users(run, cfg)) else None
    if found is None:
        encoder_weights.find_export(run)  # raises if there is no export
    if "model" in cfg:
        raise mistake(f"model: {run} contains its architecture; remove model= from the command")
    if found is None:
        return load_export(run, tuple(cfg.trusted), how="'trusted=[{0}]'")
    path, damaged = found
    for other in damaged:
        print(f"{other} is damaged; {path.name} is evaluated")
    saved = to_plain(read_config(run))
    if "encoder" not in saved["model"]:
        raise UserError(f"{run / CONFIG} is not a run's configuration: it lacks model.encoder")
    made = from_plain({"model": saved["model"]})  # only this part of the saved configuration is instantiated
    check_targets(made, trusted=tuple(cfg.trusted))
    return _build(made.model.encoder, path, size=int(saved["views"]["size"]))


def load_export(run: Path, trusted: Sequence[str] = (), *, how: str = "--trusted {0}") -> Encoder:
    """Load the exported encoder of a run or a file, as `load_encoder`.

    Args:
        run: a run's folder, or an exported folder or file.
        trusted: packages of the user that the file may name.
        how: what the user types to trust the package {0}, for the message.

    Raises:
        UserError: a trusted package is not the user's, or the file names code of another package.
        FileNotFoundError, ValueError: from the library.
    """
    check_trusted(trusted)
    try:
        return load_encoder(run, trusted=trusted)
    except UntrustedError as error:
        raise UserError(str(UntrustedError(error.name, run, how=how))) from error


def make_module(node: DictConfig) -> nn.Module:
    """Make the module of ``model.encoder``.

    Raises:
        UserError: the target made something else.
    """
    module = make(node)
    if not isinstance(module, nn.Module):
        raise mistake(f"model.encoder._target_={node._target_} made a {type(module).__name__}, not a torch.nn.Module")
    return module


def described(node: DictConfig, module: nn.Module, *, size: int, verify: bool = False) -> Encoder:
    """Return the module of ``model.encoder`` as an encoder whose ``spec`` has the target and the arguments of the node.

    Args:
        node: ``model.encoder``.
        module: made from it; the encoder shares it.
        size: side of the views in pixels.
        verify: make the module a second time, and leave its name out of ``spec`` if the two differ in h.
    """
    arguments = {key: value for key, value in to_plain(node).items() if not key.startswith("_")}
    recipe = {"factory": str(node._target_), "arguments": arguments}
    encoder = as_encoder(module, recipe, size=size)
    if verify and encoder is not module:
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        encoder.spec |= verified(recipe, module, images)
    return encoder


def untrained(encoder: Encoder, *, seed: int, trusted: Sequence[str] = ()) -> Encoder:
    """Return an encoder of the same architecture with random weights from this seed, in evaluation mode."""
    torch.manual_seed(seed)
    fresh = encoders.build(encoder.spec, trusted=trusted)
    fresh.size = encoder.size
    return fresh.eval()


def start_of(run: Path, encoder: Encoder, layer: int | str, *, fresh: bool = False) -> tuple[nn.Module, int]:
    """Return the network from which the protocol ``semi`` starts, and the width of its output.

    Args:
        run: a run's folder, whose checkpoint contains the projector.
        encoder: image -> h.
        layer: "h", or the number of projector layers after the encoder (second paper, section 3: one of three).
        fresh: give the projector random weights, for comparison.

    Raises:
        UserError: the run has no checkpoint, or its projector has too few layers.
    """
    if layer == "h":
        return encoder, encoder.feature_dim
    found = checkpoint.newest(run) if run.is_dir() else None
    if found is None:
        raise UserError(f"semi.start={layer} needs a run's folder with a checkpoint; {run} has none; use semi.start=h")
    prefix = "projector.layers."
    saved = checkpoint.load(found[0])["state_dict"]
    state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
    dense = [value for key, value in state.items() if key.endswith("weight") and value.ndim == 2]
    if int(layer) >= len(dense):
        possible = "h" if len(dense) < 2 else f"h or 1 to {len(dense) - 1}"
        raise UserError(
            f"semi.start={layer}: the run's projector has {len(dense)} layer(s); semi.start= can be {possible}"
        )
    projector = Projector(dense[0].shape[1], dense[0].shape[0], dense[-1].shape[0], len(dense))
    if not fresh:
        projector.layers.load_state_dict(state)
    first = projector.layers[: 3 * int(layer)]  # a layer is Linear, BatchNorm and ReLU
    return nn.Sequential(encoder, first), dense[int(layer) - 1].shape[0]


def _build(node: DictConfig, source: Path, *, size: int) -> Encoder:
    encoder = described(node, make_module(node), size=size)
    encoders.load_weights(encoder, source)
    encoder.size = size
    return encoder.eval()


def _is_users(run: Path, cfg: DictConfig) -> bool:
    """Return whether a run's encoder is a class of a trusted package, which `load_encoder` cannot build."""
    target = str(flatten(read_saved_config(run)).get("model.encoder._target_"))
    return bool(cfg.trusted) and resolve(target) is None and resolve(target, cfg.trusted) is not None


def _is_export(path: Path) -> bool:
    return path.suffix == ".safetensors" and encoder_weights.read_export(path, required=False)[1] is not None
