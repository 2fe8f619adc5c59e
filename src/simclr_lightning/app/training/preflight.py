"""Print the pre-flight line at a run's start: which part limits the speed, and what to change."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
from omegaconf import DictConfig

from simclr_lightning import machine, preflight
from simclr_lightning.data import FolderImages, ViewsDataModule
from simclr_lightning.preflight import Rates
from simclr_lightning.simclr import SimCLR
from simclr_lightning.stopping import Stopped
from simclr_lightning.text import first_line

WORTH_MEASURING = 200  # steps: the measurement takes as long as about five steps


def preflight_line(
    cfg: DictConfig, module: SimCLR, data: ViewsDataModule, trainer: L.Trainer, *, devices: int, steps: int
) -> str:
    """Measure for about two seconds and return the line to print; an empty text if nothing is measured.

    All processes of the run measure at the same time, as they will train. The run does not depend on the measurement;
    if it fails, the line has the error, and training goes on.

    Args:
        cfg: the run's configuration; ``preflight=false`` measures nothing.
        module: the module to train; it is not changed.
        data: the images; they are not changed.
        trainer: its device and precision are measured.
        devices: number of processes on this machine.
        steps: optimizer steps that are left; below `WORTH_MEASURING`, only ``preflight=true`` measures.
    """
    if cfg.preflight is False or (cfg.preflight == "auto" and steps < WORTH_MEASURING):
        return ""
    try:
        rates = rates_of(module, data, trainer, processes=devices * cfg.trainer.num_nodes, steps=steps)
        return line_of(cfg, data, trainer, rates, devices=devices)
    except Stopped:
        raise
    except Exception as error:  # training raises it again, and its message has the fix
        return f"pre-flight: not measured ({type(error).__name__}: {first_line(error)})"


def rates_of(module: SimCLR, data: ViewsDataModule, trainer: L.Trainer, *, processes: int, steps: int) -> Rates:
    """Return the rates of one of ``processes`` processes, in the precision and with the micro-batches of the run."""
    parts = data.batch_size // (module.micro_batch_size or data.batch_size)
    rates = preflight.measure_rates(
        module,
        data,
        batch=data.batch_size // parts // processes,
        device=trainer.strategy.root_device,
        images=steps * data.batch_size // processes,
        context=trainer.precision_plugin.forward_context,
    )
    # All micro-batches but one go forward twice, and forward is about a third of forward and backward.
    return replace(rates, encoder=rates.encoder / (1 + (parts - 1) / parts / 3))


def line_of(cfg: DictConfig, data: ViewsDataModule, trainer: L.Trainer, rates: Rates, *, devices: int) -> str:
    """Return the pre-flight line for measured rates, with ``devices`` processes on this machine."""
    tensor = data.load().train.tensor
    return preflight.line(
        rates,
        processes=devices * cfg.trainer.num_nodes,
        cores=max(1, machine.cores() // devices),
        in_memory=tensor is not None,
        resident=tensor is not None and data.is_resident(tensor, trainer.strategy.root_device),
        packable=isinstance(data.load().train, FolderImages),
    )
