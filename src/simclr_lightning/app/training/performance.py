"""Resolve the keys for speed: precision, TF32, compilation, channels_last (docs/large_batches.md has the table)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

import torch
from omegaconf import DictConfig

from simclr_lightning.app.errors import UserError

# In steps. Compiling takes about a minute, and two with micro-batches, whose first pass runs without gradients.
WORTH_COMPILING: Final = 2000


def precision(cfg: DictConfig, kind: str) -> str | int:
    """Return Lightning's precision: ``auto`` is bf16-mixed on a GPU that supports it, else 32-true.

    Args:
        cfg: the run's configuration.
        kind: cuda or cpu.

    Raises:
        UserError: float16 on a CPU, for which Lightning would train in bfloat16.
    """
    asked: str | int = cfg.trainer.precision
    if kind == "cpu" and asked in ("16-mixed", "16", 16):
        raise UserError(f"trainer.precision={asked}: float16 needs a GPU; on the CPU use bf16-mixed or 32-true")
    if asked != "auto":
        return asked
    return "bf16-mixed" if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def channels_last(cfg: DictConfig, kind: str) -> bool:
    """Return whether weights are stored channels_last: ``auto`` means yes on a CPU and on NVIDIA's GPUs.

    Args:
        cfg: the run's configuration.
        kind: cuda, mps or cpu.
    """
    return kind != "mps" if cfg.model.channels_last == "auto" else bool(cfg.model.channels_last)


def uses_tf32(cfg: DictConfig, kind: str) -> bool:
    """Return whether the training step may use TF32 for float32 products: ``auto`` means yes on a GPU."""
    return kind == "cuda" and cfg.tf32 in ("auto", True)


def compiles(cfg: DictConfig, kind: str, steps: int) -> bool:
    """Return whether the network is compiled: ``auto`` means yes on a GPU that Triton supports, in a long run.

    Args:
        cfg: the run's configuration.
        kind: cuda or cpu.
        steps: optimizer steps that are left.
    """
    if cfg.compile != "auto":
        return bool(cfg.compile)
    able = kind == "cuda" and torch.cuda.get_device_capability() >= (7, 0) and find_spec("triton") is not None
    return able and steps >= WORTH_COMPILING


def keeps_pages(cfg: DictConfig, kind: str) -> bool:
    """Return whether the process keeps freed memory (`machine.keep_pages`): ``auto`` means yes on a CPU.

    Args:
        cfg: the run's configuration.
        kind: cuda, mps or cpu.
    """
    return kind == "cpu" if cfg.keep_pages == "auto" else bool(cfg.keep_pages)


@contextmanager
def products(tf32: bool, kind: str) -> Iterator[None]:
    """Allow or forbid TF32 inside the block; NT-Xent and the views never use it."""
    if kind != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def note(cfg: DictConfig, kind: str, steps: int) -> str:
    """Return one line that names everything that is not plain float32, and threads that wait without spinning."""
    used = [f"precision {precision(cfg, kind)}"] if str(precision(cfg, kind)) not in ("32", "32-true") else []
    used += ["TF32"] if uses_tf32(cfg, kind) else []
    used += [f"{threads} threads that do not spin"] if kind == "cpu" and (threads := _passive_threads()) > 1 else []
    used += ["compiled (the first step takes a minute or so)"] if compiles(cfg, kind, steps) else []
    return ", ".join(used)


def _passive_threads() -> int:
    """Return torch's number of threads if they sleep while they wait (`machine.wait_passively`), else 0."""
    return torch.get_num_threads() if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive" else 0
