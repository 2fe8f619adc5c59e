"""The devices of this machine, and what a configuration asks of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from simclr_lightning.cli.errors import UserError, mistake

if TYPE_CHECKING:
    from omegaconf import DictConfig


def device_count(cfg: DictConfig) -> int:
    """Devices on this machine that ``trainer.devices`` asks for; "auto" and -1 are all there are.

    Raises:
        UserError: when there are fewer.
    """
    import torch

    asked = cfg.trainer.devices
    kind = accelerator(cfg)
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if asked in ("auto", -1):
        return there
    if kind != "cpu" and int(asked) > there:
        raise UserError(f"trainer.devices={asked}, but this machine has {there} GPU(s); use trainer.devices={there}")
    return int(asked)


def accelerator(cfg: DictConfig) -> str:
    """The accelerator that ``trainer.accelerator`` stands for here: cuda, mps or cpu.

    ``auto`` leaves Apple's GPUs (mps) alone: the runs of this project's tests have not met one.

    Raises:
        UserError: when there is none of it.
    """
    import torch

    asked, there = str(cfg.trainer.accelerator), torch.cuda.is_available()
    if asked in ("gpu", "cuda") and not there:
        raise UserError(f"trainer.accelerator={asked}, but no GPU is found here; use trainer.accelerator=cpu")
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("trainer.accelerator=mps, but no GPU of Apple's is found here; use trainer.accelerator=cpu")
        return "mps"
    return "cuda" if there and asked != "cpu" else "cpu"


def world_size(cfg: DictConfig) -> int:
    """Processes of the whole run, also where the machine has fewer devices than are asked for."""
    asked = cfg.trainer.devices
    try:
        here = device_count(cfg)
    except UserError:
        here = asked if isinstance(asked, int) and asked > 0 else 1
    return int(here * cfg.trainer.num_nodes)


def devices_of_a_batchnorm(cfg: DictConfig) -> int:
    """Devices that share one set of BatchNorm's statistics, by ``trainer.sync_batchnorm``; 1: none do.

    Only NVIDIA's GPUs can; a group that is larger than the run is the run.

    Raises:
        UserError: for devices that are no whole number of groups.
    """
    asked, world = cfg.trainer.sync_batchnorm, device_count(cfg) * int(cfg.trainer.num_nodes)
    check_groups(asked, world)
    if accelerator(cfg) != "cuda" or asked is False:
        return 1
    return world if asked is True or asked == "auto" else min(int(asked), world)


def check_groups(asked: int | str, world: int) -> None:
    """Refuse ``trainer.sync_batchnorm`` in groups that the devices do not fill.

    Raises:
        UserError: with a size that they do.
    """
    if isinstance(asked, int) and not isinstance(asked, bool) and asked < world and world % asked:
        near = next(size for size in range(asked, 0, -1) if world % size == 0)
        raise mistake(
            f"trainer.sync_batchnorm={asked}: {world} devices are no whole number of groups of {asked}; "
            f"use {near}, for example"
        )


def gpus() -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows this process's GPUs."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
