"""The folder of a run: where a new one goes, which one is resumed, and that only one process writes into it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simclr_lightning.cli import config
from simclr_lightning.cli.errors import UserError

GROUPS = ("data", "model", "views", "trainer")  # what is read of a saved configuration
MAY_DIFFER = ("trainer.max_epochs", "trainer.max_steps", "trainer.devices")


@dataclass(frozen=True)
class Run:
    """One run: its folder, its configuration, the words that made it, and where it starts from.

    Attributes:
        folder: the run's folder.
        cfg: the resolved configuration, without the hydra node.
        overrides: the words of the command line that lead to ``cfg``.
        hydra: the hydra node.
        checkpoint: the checkpoint to go on from; None for a new run.
        notes: lines to print once.
        force: go on although the images differ.
    """

    folder: Path
    cfg: DictConfig
    overrides: tuple[str, ...]
    hydra: Any
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()
    force: bool = False


def locate(overrides: Sequence[str]) -> Run:
    """Compose the configuration and find the folder: a new one, or the one that ``ckpt_path`` names.

    Raises:
        UserError: for a bad configuration, a folder that holds a run already, or a resume that does not fit.
    """
    full = config.compose(overrides)
    if full.ckpt_path is None:
        folder = Path(full.hydra.run.dir)
        if _given(overrides, "hydra.run.dir") and holds_a_run(folder):
            raise UserError(
                f"{folder} already holds a run; give another hydra.run.dir=, or go on with it: ckpt_path='{folder}'"
            )
        return Run(folder.absolute(), _job(full), tuple(overrides), full.hydra, force=bool(full.force))
    return _resumed(overrides, full)


def holds_a_run(folder: Path) -> bool:
    """Whether a folder has something to lose: a checkpoint, or the summary of a finished run."""
    from simclr_lightning import checkpoint

    return any(folder.glob("checkpoints/*.ckpt")) or checkpoint.read_summary(folder).get("status") == "finished"


def reserve(run: Run) -> Run:
    """Make the folder of a new run that was not named by the user; -2, -3, ... when runs start in one second."""
    if run.checkpoint is not None or _given(run.overrides, "hydra.run.dir"):
        return run
    names = (run.folder.name, *(f"{run.folder.name}-{n}" for n in range(2, 1000)))
    for name in names:
        with suppress(FileExistsError, OSError):
            folder = run.folder.with_name(name)
            folder.mkdir(parents=True)
            return replace(run, folder=folder)
    return run  # it cannot be made: `locked` says why


@contextmanager
def locked(folder: Path, key: str = "hydra.run.dir") -> Iterator[None]:
    """Make the folder and hold it for this process.

    Args:
        folder: a run's, or a sweep's.
        key: what names another one.

    Raises:
        UserError: when another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be written ({error.strerror}); give another one: {key}=DIR"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise UserError(f"another process is using {folder}; wait for it, or give another {key}=") from error
    try:
        yield
    finally:
        os.close(handle)


def write_config(run: Run) -> None:
    """Write .hydra/config.yaml (resolved), overrides.yaml and hydra.yaml."""
    from simclr_lightning.files import write_text

    target = run.folder / ".hydra"
    target.mkdir(exist_ok=True)
    kept = [word for word in run.overrides if not _given([word], *config.NOT_OF_THE_RUN)]
    write_text(target / "config.yaml", OmegaConf.to_yaml(run.cfg))
    # Plain YAML: OmegaConf would take a ${ in a path for an interpolation.
    write_text(target / "overrides.yaml", yaml.safe_dump(kept, allow_unicode=True))
    write_text(target / "hydra.yaml", OmegaConf.to_yaml(run.hydra))


def read_config(folder: Path) -> DictConfig:
    """The saved configuration of a run's folder.

    Raises:
        UserError: when the folder holds none, or one with a value that cannot be read.
    """
    path = folder / ".hydra" / "config.yaml"
    try:
        cfg = OmegaConf.load(path)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{folder} is not a run's folder: {path} cannot be read") from error
    if not isinstance(cfg, DictConfig) or not all(isinstance(cfg.get(name), DictConfig) for name in GROUPS):
        raise UserError(f"{path} is not a run's configuration: it must have {', '.join(GROUPS)}")
    return cfg


def saved_overrides(folder: Path) -> list[str]:
    """The words that a run was started with, without those that are said anew at every start.

    Raises:
        UserError: when the folder holds none.
    """
    path = folder / ".hydra" / "overrides.yaml"
    try:
        words = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder} is not a run's folder: {path} cannot be read") from error
    if words is not None and not isinstance(words, list):
        raise UserError(f"{path} is not a list of words; how the run was started cannot be told")
    return [str(word) for word in words or () if not _given([str(word)], *config.NOT_OF_THE_RUN)]


def differences(folder: Path, fresh: DictConfig) -> list[str]:
    """A line "key: saved -> now" for every value of a run's saved configuration that ``fresh`` changes.

    A key that the program did not have when the run began is absent there. It is no difference where it has the value
    that the run's own words give it today.

    Raises:
        UserError: when the folder holds no run.
    """
    saved = read_config(folder)
    if not config.diff(saved, fresh):
        return []
    try:
        usual = config.compose(saved_overrides(folder))
    except UserError:  # one of the words is known no more
        usual = None
    return config.diff(saved, fresh, usual=usual)


def _resumed(overrides: Sequence[str], full: DictConfig) -> Run:
    from simclr_lightning import checkpoint

    folder, chosen = _named(full, overrides)
    words = _replaced(saved_overrides(folder), overrides)
    fresh = config.compose(words)
    changed = differences(folder, fresh)
    lines = [line for line in changed if not line.startswith(tuple(f"{key}:" for key in MAY_DIFFER))]
    if lines and not fresh.force:
        shown = lines[:3] + ([f"and {len(lines) - 3} more"] if len(lines) > 3 else [])
        raise UserError(
            f"{folder} was trained with another configuration:\n  " + "\n  ".join(shown[:3]) + "\n"
            "leave these keys as they were, start a new run, or add force=true to go on all the same"
        )
    notes: tuple[str, ...] = ()
    if chosen is None:
        found = checkpoint.newest(folder)
        if found is None:
            raise UserError(f"{folder} holds no valid checkpoint in checkpoints/; start a new run")
        chosen, damaged = found
        notes = tuple(f"{path} is damaged and was left alone; {chosen.name} is used" for path in damaged)
    return Run(folder, _job(fresh), tuple(words), fresh.hydra, chosen, notes, bool(fresh.force))


def _named(full: DictConfig, overrides: Sequence[str]) -> tuple[Path, Path | None]:
    """The folder that ckpt_path names, and the checkpoint when it is a file."""
    from simclr_lightning import checkpoint

    named = str(full.ckpt_path)
    if "://" in named:
        raise UserError(f"ckpt_path={named}: addresses are not loaded; give a file or a run's folder on this machine")
    if named == "last":
        given = Path(full.hydra.run.dir)
        root = given if _given(overrides, "hydra.run.dir") else given.parent
        folder = next(checkpoint.unfinished(root), None)
        if folder is None:
            raise UserError(f"ckpt_path=last: there is no unfinished run under {root}; name one: ckpt_path=DIR")
        return folder.absolute(), None
    path = Path(named).absolute()
    if path.is_dir():
        return path, None
    if path.is_file():
        if path.parent.name != "checkpoints":
            raise UserError(
                f"ckpt_path={named} is not in a run's checkpoints/ folder; for weights alone: model.weights="
            )
        return path.parent.parent, path
    raise UserError(f"ckpt_path={named}: no such file or folder; give a run's folder, a checkpoint, or last")


def _replaced(saved: Sequence[str], given: Sequence[str]) -> list[str]:
    """Saved words with the given ones in the place of those of the same key (a group may be chosen only once)."""
    keys = {_key(word) for word in given}
    return [*(word for word in saved if _key(word) not in keys), *given]


def _key(word: str) -> str:
    return word.lstrip("+~").split("=", 1)[0]


def _given(words: Sequence[str], *keys: str) -> bool:
    names = [_key(word) for word in words]
    return any(name == key or name.startswith((f"{key}.", f"{key}/")) for name in names for key in keys)


def _job(full: DictConfig) -> DictConfig:
    plain = config.to_plain(full)
    for key in config.NOT_OF_THE_RUN:
        plain.pop(key, None)
    return config.from_plain(plain)
