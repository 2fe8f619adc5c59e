"""Checkpoints that survive a kill at any moment: written beside, synced, hashed, swapped in, and found again.

`last.ckpt` is the newest, `previous.ckpt` the one before it, `best.ckpt` the best by the online score. Beside each lies
``NAME.sha256``. A save writes the new digest next to the old one first and swaps the file in afterwards, so a kill
between the two leaves a file that one of the listed digests still vouches for.
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
    """A checkpoint that cannot be used; the message names the file and the mend."""


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write ``checkpoint`` to ``path`` so that at any moment a valid file is there; the old last becomes previous.

    Args:
        checkpoint: plain containers, numbers, strings and tensors only.
        path: the file; its folder is made.

    Raises:
        CheckpointError: when the disk is full or the folder is not writable; the older file is left intact.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.whole(path) as fresh:
            with fresh.open("wb") as file:
                torch.save(checkpoint, file)
            files.sync(fresh)  # before a digest vouches for it
            digest = _sha256(fresh)
            if path.name == LAST and path.exists():
                copy(path, path.with_name(PREVIOUS))
            write_text(_digest_file(path), "\n".join((digest, *_digests(path)[:3])) + "\n")
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise CheckpointError(
            f"the checkpoint {path} could not be written ({error}); the older one is intact. "
            "Free some space or make the folder writable, then resume with ckpt_path=last"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; only plain containers and tensors are unpickled.

    Raises:
        CheckpointError: when it is missing, damaged (its SHA-256 differs), or holds anything that would run code.
    """
    import torch

    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give a run's folder or one of its .ckpt files as ckpt_path=")
    if not intact(path):
        raise CheckpointError(f"the checkpoint {path} is damaged: its SHA-256 is not the one it was saved with")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"the checkpoint {path} holds more than tensors and plain containers; it is not loaded, since it could "
            "run code. Use a checkpoint that this program wrote"
        ) from error
    except Exception as error:  # torch raises many types for a broken zip archive
        raise CheckpointError(f"the checkpoint {path} cannot be read: {first_line(error)}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a training checkpoint: it has no state_dict")
    return checkpoint


def intact(path: Path) -> bool:
    """Whether the file is there and matches a digest beside it (a file without one is not trusted)."""
    return path.is_file() and _sha256(path) in _digests(path)


def has_digest(path: Path) -> bool:
    """Whether a digest lies beside the file, as beside each that this program saved."""
    return bool(_digests(path))


def copy(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``; neither is missing or torn at any moment.

    A hard link where the disk has them: saves replace files and never write into them, so the copy stays as it is.
    """
    write_text(_digest_file(target), "\n".join((*_digests(source)[:3], *_digests(target)[:3])) + "\n")
    with files.whole(target) as fresh:
        fresh.unlink(missing_ok=True)
        try:
            os.link(source, fresh)
        except OSError:
            shutil.copyfile(source, fresh)


def newest(run: Path) -> tuple[Path, tuple[Path, ...]] | None:
    """The newest valid checkpoint of a run's folder, and the damaged newer ones; None when there is none."""
    damaged: list[Path] = []
    for name in (LAST, PREVIOUS):
        path = run / "checkpoints" / name
        if intact(path):
            return path, tuple(damaged)
        if path.exists():
            damaged.append(path)
    return None


def sweep_debris(run: Path) -> None:
    """Clear what a killed process left: temporary files, and digests of files that never came.

    A damaged checkpoint is put aside as NAME.damaged, so that the next save does not take it for the previous one.
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
    """Folders below ``root`` that hold a checkpoint and no finished summary, the newest first."""
    runs = {path.parent.parent for name in (LAST, PREVIOUS) for path in root.glob(f"**/checkpoints/{name}")}
    dated = sorted(runs, key=lambda run: (_newest_time(run), run.name), reverse=True)
    return (run for run in dated if read_summary(run).get("status") != "finished")


def rewind(checkpoint: dict[str, Any], *, batches: int, steps_per_epoch: int) -> None:
    """Set a checkpoint's loop counters to what its position alone says, in place.

    Lightning's counters depend on the hook a checkpoint was saved in (and an epoch cut short by ``max_steps`` counts
    as whole); the position does not. With it, a run resumes at the same image wherever it was saved.

    Args:
        checkpoint: as `load` returns it.
        batches: global batches of today's size seen so far; the optimiser step unless the batch was changed.
        steps_per_epoch: of today's batch.
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
