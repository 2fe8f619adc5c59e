"""What ``simclr evaluate`` judges: the encoder of a run, an export or a state dict, and on which images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from simclr_lightning import checkpoint, encoders
from simclr_lightning.cli import checks, config
from simclr_lightning.cli.build import make
from simclr_lightning.cli.errors import UserError, explain, mistake
from simclr_lightning.cli.evaluation_ranges import DATA_SETS
from simclr_lightning.cli.folder import read_config
from simclr_lightning.cli.mistakes import flatten
from simclr_lightning.cli.quoting import literal, quoted
from simclr_lightning.encoders import Encoder
from simclr_lightning.encoders import weights as encoder_weights
from simclr_lightning.export import load_encoder
from simclr_lightning.projector import Projector


def configure(run: Path, words: Sequence[str]) -> DictConfig:
    """Compose and check conf/evaluate.yaml; without ``data=`` a run's own images are taken.

    Raises:
        UserError: for the first mistake.
    """
    cfg = config.compose([*_saved_data(run, words), *words], name="evaluate")
    checks.check_evaluation(cfg)
    checks.check_targets(cfg, trusted=tuple(cfg.trusted))
    return cfg


def configure_transfer(run: Path, words: Sequence[str], cfg: DictConfig) -> dict[str, DictConfig]:
    """The configuration for each data set of ``transfer``: the given words with its data.

    Raises:
        UserError: as `configure`; a data set that needs a path and has none.
    """
    kept = [word for word in words if not word.lstrip("+~").startswith(("data=", "data."))]
    found = {}
    for name in cfg.transfer:
        path = [f"data.path={_word(cfg.paths[name])}"] if cfg.paths[name] else []
        with paths_named(name):
            found[name] = configure(run, [*kept, f"data={name}", *path])
    return found


@contextmanager
def paths_named(name: str) -> Iterator[None]:
    """Inside, messages that name ``data.path`` name ``paths.NAME`` of ``transfer`` in its place."""
    try:
        yield
    except Exception as error:
        said = explain(error)
        if said is None:
            raise
        code = error.code if isinstance(error, UserError) else 1
        raise UserError(said.replace("data.path", f"paths.{name}"), code=code) from error


def load(run: Path, cfg: DictConfig) -> Encoder:
    """The encoder with its weights, in evaluation mode, its ``size`` set.

    Args:
        run: a run's folder, finished or not; an exported folder or file; or a file with a state dict, for which
            ``cfg.model`` says the architecture.
        cfg: from `configure`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: the weights cannot be read or do not fit.
        UserError: a state dict without an architecture, or an export with one.
    """
    if run.is_file() and not _is_export(run):
        if "model" not in cfg:
            raise mistake(f"{run} holds weights without their architecture; say it, such as model=resnet50")
        return _build(cfg.model.encoder, run, size=int(cfg.views.size))
    unfinished = run.is_dir() and not (run / "exported").is_dir() and (run / ".hydra").is_dir()
    found = checkpoint.newest(run) if unfinished else None
    if found is None:
        encoder_weights.find_export(run)  # raises where nothing is
    if "model" in cfg:
        raise mistake(f"model: {run} knows its architecture; leave model out")
    if found is None:
        return load_encoder(run)
    path, damaged = found
    for other in damaged:
        print(f"{other} is damaged; {path.name} is judged")
    saved = config.to_plain(read_config(run))
    made = config.from_plain({"model": saved["model"]})  # all of the run that is made here
    checks.check_targets(made, trusted=tuple(cfg.trusted))
    return _build(made.model.encoder, path, size=int(saved["views"]["size"]))


def untrained(encoder: Encoder, *, seed: int) -> Encoder:
    """A new encoder of the same architecture with random weights of this seed, in evaluation mode."""
    torch.manual_seed(seed)
    fresh = encoders.build(encoder.spec)
    fresh.size = encoder.size
    return fresh.eval()


def start_of(encoder: Encoder, run: Path, layer: int | str, *, fresh: bool = False) -> tuple[nn.Module, int]:
    """What the semi-supervised protocol begins with, and the width of its output.

    Args:
        encoder: image -> h.
        run: a run's folder, whose checkpoint holds the projector.
        layer: "h", or how many layers of the projector to keep (second paper, section 3: one of three).
        fresh: a projector with random weights, to compare with.

    Raises:
        UserError: there is no checkpoint with such a layer.
    """
    if layer == "h":
        return encoder, encoder.feature_dim
    found = checkpoint.newest(run) if run.is_dir() else None
    if found is None:
        raise UserError(f"semi.start={layer} needs a run's folder with its checkpoint; {run} has none: semi.start=h")
    prefix = "projector.layers."
    saved = checkpoint.load(found[0])["state_dict"]
    state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
    dense = [value for key, value in state.items() if key.endswith("weight") and value.ndim == 2]
    if int(layer) >= len(dense):
        raise UserError(
            f"semi.start={layer}: the run's projector has {len(dense)} layer(s), so a middle one is "
            f"{'not there: semi.start=h' if len(dense) < 2 else f'1 to {len(dense) - 1}'}"
        )
    projector = Projector(dense[0].shape[1], dense[0].shape[0], dense[-1].shape[0], len(dense))
    if not fresh:
        projector.layers.load_state_dict(state)
    kept = projector.layers[: 3 * int(layer)]  # Linear, BatchNorm and ReLU a layer
    return nn.Sequential(encoder, kept), dense[int(layer) - 1].shape[0]


def _build(node: DictConfig, source: Path, *, size: int) -> Encoder:
    encoder: Encoder = make(node)
    encoders.load_weights(encoder, source)
    encoder.size = size
    return encoder.eval()


def _is_export(path: Path) -> bool:
    return path.suffix == ".safetensors" and encoder_weights.read_export(path, required=False)[1] is not None


def _saved_data(run: Path, words: Sequence[str]) -> list[str]:
    """The data and seed that a run was trained with, as words; none where others are chosen."""
    given = {word.lstrip("+~").partition("=")[0] for word in words}
    if "data" in given or not (run / ".hydra").is_dir():
        return []
    try:
        saved = config.to_plain(read_config(run))
    except UserError as error:
        raise UserError(f"{error}\nsay the images: data=...") from error
    leaves = {f"data.{key}": value for key, value in flatten(saved["data"]).items()} | {"seed": saved.get("seed", 0)}
    # The group that has these keys; for images of the user's own the default, which has no others.
    name = str(leaves.get("data.dataset._target_")).removeprefix("simclr_lightning.data.")
    group = [f"data={name}"] if name in DATA_SETS else []
    return [*group, *(f"++{key}={_word(value)}" for key, value in leaves.items())]


def _word(value: Any) -> str:
    """A plain value as Hydra's grammar writes it."""
    if isinstance(value, str):
        return quoted(literal(value))
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
