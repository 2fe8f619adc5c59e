"""Make the folder of one run, lock it for one process, and write and read its saved configuration."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simclr_lightning.app.config.grammar import SEARCH_PATH
from simclr_lightning.app.config.plain import NOT_OF_THE_RUN
from simclr_lightning.app.config.quoting import PATH_KEYS
from simclr_lightning.app.errors import UserError
from simclr_lightning.files import write_text
from simclr_lightning.overrides import is_given, key_of
from simclr_lightning.run_folder import (
    CHECKPOINTS,
    CONFIG,
    HYDRA,
    OVERRIDES,
    RunFolderError,
    is_job,
    read_overrides,
    read_saved_config,
    read_summary,
)

GROUPS: Final = ("data", "model", "views", "trainer")  # the groups that a saved configuration must have
NAME_AT_MOST: Final = 120  # characters


@dataclass(frozen=True)
class Run:
    """One run: its folder, its configuration, the overrides that made it, and the checkpoint to resume from.

    Attributes:
        folder: the run's folder.
        cfg: the resolved configuration, without the ``hydra`` node.
        overrides: the overrides from which ``cfg`` was composed.
        hydra: the ``hydra`` node.
        checkpoint: the checkpoint to resume from; None for a new run.
        notes: lines to print once.
        any_images: resume although the images differ.
    """

    folder: Path
    cfg: DictConfig
    overrides: tuple[str, ...]
    hydra: Any
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()
    any_images: bool = False

    @property
    def is_finished(self) -> bool:
        """Return whether a resumed run has done all its epochs or steps, or was ended by the same callback."""
        summary = read_summary(self.folder)
        if self.checkpoint is None or summary.get("status") != "finished":
            return False
        if "ended_by" in summary and read_saved_config(self.folder) == OmegaConf.to_container(self.cfg):
            return True
        epochs, steps = summary.get("epochs"), summary.get("steps")
        if not isinstance(epochs, int | float) or not isinstance(steps, int):
            return False  # the summary was edited or is from another program; the checkpoint has the true numbers
        return bool(reached_limits(self.cfg, epochs=epochs, steps=steps))


def reached_limits(cfg: DictConfig, *, epochs: float, steps: int) -> list[str]:
    """Return the keys that end a run after these epochs and optimizer steps; none when it can go on."""
    reached = {
        "trainer.max_epochs": cfg.trainer.max_epochs <= epochs,
        "trainer.max_steps": 0 <= cfg.trainer.max_steps <= steps,
    }
    return [key for key, is_reached in reached.items() if is_reached]


def folder_key(run: Run) -> str | None:
    """Return the key that puts a run into another folder; None for a resumed run, which stays in its folder."""
    return "hydra.run.dir" if run.checkpoint is None else None


def holds_a_run(folder: Path) -> bool:
    """Return whether a folder contains a checkpoint or the summary of a finished run."""
    return any(folder.glob(f"{CHECKPOINTS}/*.ckpt")) or read_summary(folder).get("status") == "finished"


def reserve(run: Run) -> Run:
    """Make the folder of a new run, unless the user named it; append -2, -3, ... if the name is taken."""
    if run.checkpoint is not None or is_given(run.overrides, "hydra.run.dir"):
        return run
    names = (run.folder.name, *(f"{run.folder.name}-{n}" for n in range(2, 1000)))
    for name in names:
        with suppress(FileExistsError, OSError):
            folder = run.folder.with_name(name)
            folder.mkdir(parents=True)
            return replace(run, folder=folder)
    return run  # it cannot be made; `locked` raises the reason


@contextmanager
def locked(folder: Path, key: str | None = "hydra.run.dir") -> Iterator[None]:
    """Make a folder if necessary, and lock it for this process.

    Args:
        folder: the folder of a run or a sweep.
        key: the key that selects another folder, for the message; None: no key does (`folder_key`).

    Raises:
        UserError: another process has locked the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be written ({error.strerror}); "
            + ("make it writable" if key is None else f"give another one: {key}=DIR")
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        other = "" if key is None else f", or give another {key}=DIR"
        raise UserError(f"another process is using {folder}; wait for it{other}") from error
    try:
        yield
    finally:
        os.close(handle)


def write_config(run: Run) -> None:
    """Write .hydra/config.yaml (resolved), overrides.yaml and hydra.yaml."""
    (run.folder / CONFIG).parent.mkdir(exist_ok=True)
    write_text(run.folder / CONFIG, OmegaConf.to_yaml(run.cfg))
    # Plain YAML: OmegaConf would take a ${ in a path for an interpolation.
    write_text(run.folder / OVERRIDES, yaml.safe_dump(_of_the_run(run.overrides), allow_unicode=True))
    write_text(run.folder / HYDRA, OmegaConf.to_yaml(run.hydra))


def read_config(folder: Path) -> DictConfig:
    """Return the saved configuration of a run.

    Raises:
        UserError: the folder has no configuration, or a damaged one.
    """
    path = folder / CONFIG
    try:
        cfg = OmegaConf.load(path)
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{folder} is not a run's folder: {path} cannot be read") from error
    if not isinstance(cfg, DictConfig) or not all(isinstance(cfg.get(name), DictConfig) for name in GROUPS):
        raise UserError(f"{path} is not a run's configuration: it must have {', '.join(GROUPS)}")
    return cfg


def saved_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run was started with, without the keys of `NOT_OF_THE_RUN`.

    Raises:
        UserError: the folder has no overrides.yaml.
    """
    try:
        if not (folder / OVERRIDES).is_file():
            raise RunFolderError(f"{folder / OVERRIDES} cannot be read")
        return _of_the_run(read_overrides(folder))
    except RunFolderError as error:
        raise UserError(f"{folder} is not a run's folder: {error}") from error


def started_in(folder: Path) -> str | None:
    """Return the folder that was current at a run's last start; None if that is not saved."""
    try:
        return str(yaml.safe_load((folder / HYDRA).read_text("utf-8"))["runtime"]["cwd"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None


def run_name(folder: Path) -> str:
    """Return a run's name: in a sweep the overrides in its folder's name, else its overrides without paths."""
    if is_job(folder):
        return re.sub(r"^\d+_", "", folder.name)
    try:
        overrides = saved_overrides(folder)
    except UserError:
        return folder.name
    named = ",".join(override for override in overrides if key_of(override) not in (*PATH_KEYS, SEARCH_PATH))
    return named[:NAME_AT_MOST] or folder.name


def _of_the_run(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without the keys of `NOT_OF_THE_RUN`; the run's groups may be in ``hydra.searchpath``."""
    return [one for one in overrides if key_of(one) == SEARCH_PATH or not is_given([one], *NOT_OF_THE_RUN)]
