"""Choose the devices of a run: accelerator, number of processes, and which of them share BatchNorm."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from simclr_lightning import machine
from simclr_lightning.app.config.validate import check_batchnorm_groups
from simclr_lightning.app.errors import UserError


def device_count(cfg: DictConfig) -> int:
    """Return how many devices of this machine ``trainer.devices`` selects; "auto" and -1 select all.

    Raises:
        UserError: when there are fewer. On a machine without a GPU, more processes than cores need
            ``trainer.accelerator=cpu``.
    """
    import torch

    asked = cfg.trainer.devices
    kind = accelerator(cfg)
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if asked in ("auto", -1):
        return there
    if OmegaConf.is_list(asked):
        return _listed(list(asked), kind, there)
    if kind != "cpu" and int(asked) > there:
        raise UserError(f"trainer.devices={asked}, but this machine has {there} GPU(s); use trainer.devices={there}")
    cores = machine.cores()
    if kind == "cpu" and cfg.trainer.accelerator != "cpu" and int(asked) * cfg.trainer.num_nodes > cores:
        raise UserError(
            f"trainer.devices={asked}: no GPU is found here, and the CPU has {cores} cores\n"
            f"use trainer.devices=1, or add trainer.accelerator=cpu to start {asked} slow processes on the CPU"
        )
    return int(asked)


def _listed(asked: list[int], kind: str, there: int) -> int:
    """Return the number of GPUs in a list of their numbers; a CPU has only the number 0."""
    if kind != "cuda" and asked != [0]:
        raise UserError(f"trainer.devices={asked} names GPUs, and none is found here; use trainer.devices=1")
    if max(asked) >= there:
        known = ",".join(map(str, range(there)))
        raise UserError(f"trainer.devices={asked}: this machine has the GPUs {known}; use trainer.devices=[{known}]")
    return len(asked)


def processes_note(cfg: DictConfig) -> str | None:
    """Return the line about several processes on a CPU; None for one process, and on GPUs.

    Raises:
        UserError: as `device_count`.
    """
    devices = device_count(cfg)
    if devices == 1 or accelerator(cfg) != "cpu":
        return None
    why = "" if cfg.trainer.accelerator == "cpu" else " (no GPU is found)"
    return (
        f"{devices} CPU processes on {machine.cores()} cores{why}; one is faster: trainer.devices=1, with "
        "micro_batch_size if memory is short"
    )


def accelerator(cfg: DictConfig) -> str:
    """Return the accelerator that ``trainer.accelerator`` stands for here, as `kind_of`."""
    return kind_of(str(cfg.trainer.accelerator))


def kind_of(asked: str) -> str:
    """Return the accelerator that a value of ``trainer.accelerator`` stands for here: cuda, mps or cpu.

    ``auto`` leaves Apple's GPUs (mps) alone: the runs of this project's tests have not met one.

    Raises:
        UserError: when there is none of it.
    """
    import torch

    there = torch.cuda.is_available()
    if asked in ("gpu", "cuda") and not there:
        raise UserError(f"trainer.accelerator={asked}, but no GPU is found here; use trainer.accelerator=cpu")
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("trainer.accelerator=mps, but no GPU of Apple's is found here; use trainer.accelerator=cpu")
        return "mps"
    return "cuda" if there and asked != "cpu" else "cpu"


def world_size(cfg: DictConfig) -> int:
    """Return the number of processes of the whole run, even if this machine has too few devices for it."""
    asked = cfg.trainer.devices
    try:
        here = device_count(cfg)
    except UserError:
        listed = OmegaConf.is_list(asked)
        here = len(asked) if listed else asked if isinstance(asked, int) and asked > 0 else 1
    return int(here * cfg.trainer.num_nodes)


def devices_of_a_batchnorm(cfg: DictConfig) -> int:
    """Return how many devices share BatchNorm's statistics, by ``trainer.sync_batchnorm``; 1 if none do.

    Only NVIDIA's GPUs can; a group that is larger than the run is the run.

    Raises:
        UserError: for devices that are no whole number of groups.
    """
    asked, world = cfg.trainer.sync_batchnorm, device_count(cfg) * int(cfg.trainer.num_nodes)
    check_batchnorm_groups(asked, world)
    if accelerator(cfg) != "cuda" or asked is False:
        return 1
    return world if asked is True or asked == "auto" else min(int(asked), world)


def all_devices(accelerator_name: str) -> list[Any]:
    """Return the torch devices that ``accelerator`` of an evaluation stands for: every GPU, or one other.

    Raises:
        UserError: there is none of it.
    """
    import torch

    try:
        kind = kind_of(accelerator_name)
    except UserError as error:
        raise UserError(str(error).replace("trainer.accelerator", "accelerator")) from None
    if kind == "cuda":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device(kind)]
