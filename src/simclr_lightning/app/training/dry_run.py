"""Measure and print what a run would take (``dry_run=true``); nothing is trained and no folder is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from simclr_lightning import checkpoint as checkpoints, machine, preflight
from simclr_lightning.app.runs.run import Run
from simclr_lightning.app.training import devices, performance
from simclr_lightning.app.training.build import build
from simclr_lightning.app.training.messages import opening_notes
from simclr_lightning.app.training.preflight import line_of, rates_of
from simclr_lightning.app.training.trainer import quiet_libraries, total_steps, trainer_options
from simclr_lightning.global_batch import check_batch
from simclr_lightning.preflight import Cost, Rates
from simclr_lightning.simclr import SimCLR
from simclr_lightning.text import duration, size

Row = tuple[str, str]


def print_dry_run(run: Run) -> int:
    """Print parameters, operations, memory, the largest batch, rates, the time to finish and the negatives.

    Raises:
        UserError, ValueError: the run itself would be refused at its start, for the same reason.
    """
    if os.environ.get("RANK", "0") != "0":
        return 0
    cfg, console = run.cfg, Console(highlight=False)
    quiet_libraries()
    machine.limit_threads()
    here = devices.device_count(cfg)
    processes = here * int(cfg.trainer.num_nodes)
    parts = build(cfg)
    data, splits = parts.data, parts.data.load()
    check_batch(data.batch_size, images=splits.training_images, devices=processes)
    total = total_steps(cfg, data.steps_per_epoch)
    first_step = int(checkpoints.load(run.checkpoint)["global_step"]) if run.checkpoint else 0
    left = total - first_step
    for line in (*splits.notes, *opening_notes(cfg, parts, total, first_step)):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    with console.status("measuring ..."), _threads_of_one(here if devices.accelerator(cfg) == "cpu" else 1):
        trainer = L.Trainer(**trainer_options(cfg, 1, data.steps_per_epoch), logger=False)
        device, precision = trainer.strategy.root_device, trainer.precision_plugin
        module = cast(SimCLR, precision.convert_module(parts.module))
        side, context = data.recipe.size, precision.forward_context
        with performance.products(performance.uses_tf32(cfg, device.type), device.type):
            cost = preflight.measure_cost(module, size=side, device=device, context=context)
            rates = rates_of(module, data, trainer, processes=processes, steps=left)
    table = Table(title="dry run", title_justify="left", show_header=False)
    free = preflight.free_bytes(device) / (1 if device.type == "cuda" else here)
    for row in (
        ("devices", f"{processes} {device.type}, {data.batch_size // processes} of {data.batch_size} images on each"),
        ("negatives", f"{2 * data.batch_size - 2:,} a view, from all devices"),
        *_size_rows(cost, data.batch_size, cfg.micro_batch_size, processes, free, splits.training_images),
        *_time_rows(rates, processes, left, data.batch_size),
    ):
        table.add_row(*row)
    console.print(table)
    console.print(line_of(cfg, data, trainer, rates, devices=here), markup=False, soft_wrap=True)
    console.print(f"dry_run=true: nothing is trained, and {run.folder} is not made", markup=False, soft_wrap=True)
    return 0


def _size_rows(cost: Cost, batch: int, micro: int | None, processes: int, free: float, images: int) -> list[Row]:
    local = (micro or batch) // processes
    how = "measured" if cost.measured else "expected"
    each = " a process" if processes > 1 else ""
    parts = {
        "weights": cost.weights,
        "gradients": cost.gradients,
        "optimizer": cost.optimizer,
        "activations and views": local * cost.per_pair,
        "loss and rest": cost.constant,
    }
    split = ", ".join(f"{name} {size(bytes_, 'B')}" for name, bytes_ in parts.items())
    fits = preflight.largest_batch(cost, free) * processes
    bound = f" (there are {images:,} images)" if fits > images else ""
    return [
        ("parameters", f"encoder {cost.encoder_parameters:,}, projector {cost.projector_parameters:,}"),
        ("operations", f"{size(cost.flops, 'FLOP')} a pair, forward and backward; a multiply-add is two"),
        (f"memory{each}", f"{size(cost.bytes(local), 'B')} {how}: {split}"),
        (
            f"largest {'micro-batch' if micro else 'batch'}",
            f"{fits:,} in the {size(free, 'B')} that are free{each}{bound}",
        ),
    ]


def _time_rows(rates: Rates, processes: int, steps: int, batch: int) -> list[Row]:
    whole = preflight.step_rate(rates) * processes
    time = duration(steps * batch / whole)
    return [
        ("data", f"{rates.data * processes:,.0f} images/s"),
        ("encoder", f"{rates.encoder * processes:,.0f} images/s"),
        ("time to finish", f"{time}: {steps:,} steps at {whole:,.0f} images/s, without scores and pictures"),
    ]


@contextmanager
def _threads_of_one(processes: int) -> Iterator[None]:
    """Inside, torch uses the threads of one process: the processes of a run on a CPU share its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)
