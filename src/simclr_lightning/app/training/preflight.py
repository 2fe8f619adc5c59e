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

WORTH_MEASURING = 200  # steps: the measure takes about as long as five


def preflight_line(
    cfg: DictConfig, module: SimCLR, data: ViewsDataModule, trainer: L.Trainer, *, devices: int, steps: int
) -> str:
    """Measure for about two seconds and return the line to print; empty when ``preflight`` says not to.

    Every process measures at the same time, as they will train. Nothing of the run depends on it, and whatever goes
    wrong in it is left for the training to meet.

    Args:
        cfg: the run's configuration.
        module: not changed.
        data: not changed.
        trainer: tells the device and the precision.
        devices: processes on this machine.
        steps: that are left; a run of a few is not worth it unless ``preflight=true``.
    """
    if cfg.preflight is False or (cfg.preflight == "auto" and steps < WORTH_MEASURING):
        return ""
    try:
        rates = rates_of(module, data, trainer, processes=devices * cfg.trainer.num_nodes, steps=steps)
        return line_of(cfg, data, trainer, rates, devices=devices)
    except Stopped:
        raise
    except Exception as error:  # training reports it, with the fix
        return f"pre-flight: not measured ({type(error).__name__}: {first_line(error)})"


def rates_of(module: SimCLR, data: ViewsDataModule, trainer: L.Trainer, *, processes: int, steps: int) -> Rates:
    """Measure one of ``processes`` on its device, in the run's precision and with its micro-batches."""
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
    """Return the line for measured rates, with ``devices`` processes on this machine."""
    tensor = data.load().train.tensor
    return preflight.line(
        rates,
        processes=devices * cfg.trainer.num_nodes,
        cores=max(1, machine.cores() // devices),
        in_memory=tensor is not None,
        resident=tensor is not None and data.is_resident(tensor, trainer.strategy.root_device),
        packable=isinstance(data.load().train, FolderImages),
    )
