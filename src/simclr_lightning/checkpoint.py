"""Save checkpoints so that a kill at any moment leaves a valid one, verify them, and find the newest of a run.

`last.ckpt` is the newest checkpoint, `previous.ckpt` the one before it, `best.ckpt` the one with the best online score.
Next to each file, NAME.sha256 lists digests. A save first adds the new digest to this list and then renames the new
file to NAME. So after a kill between the two steps, the old file still matches a listed digest.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simclr_lightning import files
from simclr_lightning.files import write_text
from simclr_lightning.run_folder import read_summary
from simclr_lightning.text import first_line

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class CheckpointError(ValueError):
    """A checkpoint cannot be used or written; the message names the file and the fix."""


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint to ``path``, where a valid file exists at any moment; the old last.ckpt becomes previous.ckpt.

    Args:
        checkpoint: plain containers, numbers, strings and tensors.
        path: the file; its folder is created.

    Raises:
        CheckpointError: the disk is full, or the folder is not writable. The older file is unchanged.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
    >>> save({"state_dict": {"w": torch.ones(2)}}, path)
    >>> load(path)
    {'state_dict': {'w': tensor([1., 1.])}}
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.whole(path) as fresh:
            with fresh.open("wb") as file:
                torch.save(checkpoint, file)
            files.sync(fresh)  # the file must be on the disk before its digest
            digest = _sha256(fresh)
            if path.name == LAST and path.exists():
                copy(path, path.with_name(PREVIOUS))
            write_text(_digest_file(path), "\n".join((digest, *_digests(path)[:3])) + "\n")
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise CheckpointError(
            f"the checkpoint {path} could not be written ({error}); the older one is intact. "
            "Free disk space or make the folder writable, then resume with ckpt_path=last"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU; only plain containers and tensors are unpickled.

    Raises:
        CheckpointError: the file is missing or damaged (its SHA-256 differs), has no ``state_dict``, or holds objects
            that could run code.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; set ckpt_path to a run's folder or one of its .ckpt files")
    if not intact(path):
        raise CheckpointError(
            f"the checkpoint {path} is damaged: its SHA-256 is not in {path.name}.sha256; use another one"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the checkpoint {path} was not loaded: it holds more than tensors and plain containers, and could run "
            "code. Use a checkpoint that this program wrote"
        ) from error
    except Exception as error:  # torch raises many types for a damaged zip archive
        raise CheckpointError(f"the checkpoint {path} cannot be read: {first_line(error)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a training checkpoint: it has no state_dict")
    return checkpoint


def intact(path: Path) -> bool:
    """Return whether the file exists and matches a digest in its .sha256 file; False without such a file."""
    return path.is_file() and _sha256(path) in _digests(path)


def has_digest(path: Path) -> bool:
    """Return whether the file has a .sha256 file, as all checkpoints that this program saved."""
    return bool(_digests(path))


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint and its digests; both files are complete at any moment.

    The copy is a hard link if the file system supports it. It stays unchanged, since `save` replaces files and never
    writes into them.
    """
    write_text(_digest_file(target), "\n".join((*_digests(source)[:3], *_digests(target)[:3])) + "\n")
    with files.whole(target) as fresh:
        fresh.unlink(missing_ok=True)
        try:
            os.link(source, fresh)
        except OSError:
            shutil.copyfile(source, fresh)


def newest(run: Path) -> tuple[Path, tuple[Path, ...]] | None:
    """Return the newest valid checkpoint in the folder of a run, and all damaged newer ones; None if none is valid."""
    damaged: list[Path] = []
    for name in (LAST, PREVIOUS):
        path = run / "checkpoints" / name
        if intact(path):
            return path, tuple(damaged)
        if path.exists():
            damaged.append(path)
    return None


def sweep_debris(run: Path) -> None:
    """Delete what a killed process left in the folder of a run: temporary files, and digests of unfinished files.

    A damaged checkpoint is renamed to NAME.damaged, so that the next save does not make it previous.ckpt.
    """
    for folder in (run, run / "checkpoints", run / "exported"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
    for path in (run / "checkpoints").glob("*.ckpt"):
        if intact(path):
            write_text(_digest_file(path), _sha256(path) + "\n")
        else:
            path.replace(path.with_name(path.name + ".damaged"))


def unfinished(root: Path) -> Iterator[Path]:
    """Return the folders below ``root`` of runs that have a checkpoint and are not finished, newest first."""
    runs = {path.parent.parent for name in (LAST, PREVIOUS) for path in root.glob(f"**/checkpoints/{name}")}
    dated = sorted(runs, key=lambda run: (_newest_time(run), run.name), reverse=True)
    return (run for run in dated if read_summary(run).get("status") != "finished")


def rewind(checkpoint: dict[str, Any], *, batches: int, steps_per_epoch: int) -> None:
    """Set the loop counters of a checkpoint from its position in the data, in place.

    Lightning's counters depend on the hook in which the checkpoint was saved, and they count an epoch that
    ``max_steps`` cut short as complete. The position does not, so a run resumes at the same image in either case.

    Args:
        checkpoint: a checkpoint from `load`.
        batches: global batches of the current size seen so far. This is the number of optimizer steps unless the batch
            size has changed.
        steps_per_epoch: optimizer steps in an epoch with the current batch size.
    """
    step = int(checkpoint["global_step"])
    epoch, done = divmod(batches, steps_per_epoch)
    started = epoch + (done > 0)
    fit = checkpoint["loops"]["fit_loop"]
    checkpoint["epoch"] = epoch
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    _set_counts(fit["epoch_progress"], total=epoch, current=epoch)
    for part in fit["epoch_progress"].values():
        if isinstance(part, dict):
            part.update(ready=started, started=started)
    progress = fit["epoch_loop.batch_progress"]
    _set_counts(progress, total=step, current=done)
    progress["is_last_batch"] = False
    optimizer = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for counted in (optimizer["step"], optimizer["zero_grad"], fit["epoch_loop.scheduler_progress"]):
        _set_counts(counted, total=step, current=done)


def _set_counts(progress: dict[str, Any], *, total: int, current: int) -> None:
    for name, count in (("total", total), ("current", current)):
        progress[name].update(dict.fromkeys(progress[name], count))


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digests(path: Path) -> tuple[str, ...]:
    try:
        return tuple(_digest_file(path).read_text("ascii").split())
    except (OSError, UnicodeDecodeError):
        return ()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _newest_time(run: Path) -> float:
    paths = [run / "checkpoints" / name for name in (LAST, PREVIOUS)]
    return max(path.stat().st_mtime for path in paths if path.exists())
