"""Cache the scores of raw pixels and of untrained encoders, which are the same in every run of a seed and a data set.

A score is a JSON file below $XDG_CACHE_HOME or ~/.cache, named after a hash of the images, their labels and parts, the
weights and what else the score depends on, and verified by a SHA-256. Files appear completely or not at all, so jobs
that run side by side may share the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import nn

from simclr_lightning import files
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.data.images import digest
from simclr_lightning.encoders import Encoder
from simclr_lightning.evaluation.protocols.features import Parts, file_times, fingerprint

VERSION: Final = "1"  # of the meaning of a stored score


def key_of(name: str, encoder: nn.Module | None, data: ViewsDataModule, parts: Parts, *, k: int) -> str | None:
    """Return a hex digest of everything that a kNN score depends on; None for an encoder without a description.

    Args:
        name: of the score.
        encoder: whose features are scored; None: no encoder.
        data: the images.
        parts: the rows of bank and test.
        k: neighbors that vote.
    """
    if encoder is not None and not isinstance(encoder, Encoder):
        return None  # of a user's class the weights are known, and the code is not
    splits = data.load()
    assert splits.test is not None
    device = "cpu" if encoder is None else str(next(encoder.parameters()).device)
    return digest(
        VERSION, name, str(k), str(data.recipe.size), "" if encoder is None else fingerprint(encoder),
        splits.fingerprint, splits.train.labels, splits.test.labels, parts.bank, parts.held_out, parts.test,
        file_times(splits.train), file_times(splits.test),
        # What rounding depends on.
        torch.__version__, torch.backends.cpu.get_cpu_capability(), str(torch.get_num_threads()), device,
    )  # fmt: skip


def cached(key: str | None, compute: Callable[[], float]) -> float:
    """Return the stored score of a key, or compute and store it; without a key, only compute it."""
    if key is None:
        return compute()
    with contextlib.suppress(OSError, RuntimeError, ValueError, KeyError, TypeError):  # RuntimeError: no home folder
        found = json.loads(_file(key).read_text("utf-8"))
        if found["sha256"] == _sha(key, found["score"]):
            return float(found["score"])
    score = compute()
    with contextlib.suppress(OSError, RuntimeError):
        file = _file(key)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_text(file, json.dumps({"score": score, "sha256": _sha(key, score)}) + "\n")
    return score


def _file(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "simclr-lightning" / "baselines" / f"{key}.json"


def _sha(key: str, score: float) -> str:
    return hashlib.sha256(f"{key} {score!r}".encode()).hexdigest()
