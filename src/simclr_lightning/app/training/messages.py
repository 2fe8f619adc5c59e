"""The lines that a run prints at its start, and the tables and commands that it prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch.optim.lr_scheduler import LambdaLR

from simclr_lightning.app.commands import simclr_command, train_command
from simclr_lightning.app.config.plain import to_plain
from simclr_lightning.app.config.targets import NOT_YOURS
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.build import Parts
from simclr_lightning.app.training.devices import accelerator, device_count, devices_of_a_batchnorm
from simclr_lightning.app.training.weights import weights_note
from simclr_lightning.loggers.wandb import sync_command
from simclr_lightning.optim import make_scheduler, parameter_groups
from simclr_lightning.run_folder import METRICS, flatten, online_scores, read_table, shown, typed

_WITHOUT_LABELS: Final = {  # docs/label_free.md
    "loss (NT-Xent)": ("held_out_loss", "{:.3f}"),
    "the other view is the nearest": ("contrastive_accuracy", "{:.1%}"),
    "neighbours that the views share": ("neighbour_agreement", "{:.1%}"),
    "effective rank of h": ("effective_rank", "{:.1f}"),
}


def packages_of(cfg: DictConfig) -> list[str]:
    """Return the packages of the user that the configuration of a run names, which each command must trust."""
    targets = (str(value) for key, value in flatten(to_plain(cfg)).items() if key.endswith("._target_"))
    return sorted({target.partition(".")[0] for target in targets} - NOT_YOURS)


def resume_command(folder: Path, cfg: DictConfig) -> str:
    """Return the command that resumes a run, as a user types it."""
    packages = packages_of(cfg)
    trusted = f" 'trusted=[{','.join(packages)}]'" if packages else ""
    return f"{train_command()} ckpt_path={typed(folder)}{trusted}"


def closing_block(
    folder: Path, cfg: DictConfig, summary: dict[str, Any], console: Console, *, limits: Sequence[str]
) -> None:
    """Print the table of scores, and the commands to resume, evaluate, embed and sync.

    Args:
        folder: the run's folder.
        cfg: its configuration.
        summary: the content of summary.json.
        console: where to print.
        limits: the keys that ended the run, which must be raised to resume it.
    """
    unlabelled = summary.get("knn_top1") is None
    console.print(_unlabelled(folder) if unlabelled else _labelled(summary))
    run = typed(folder)
    packages = packages_of(cfg)
    trusted = f" 'trusted=[{','.join(packages)}]'" if packages else ""
    commands = {
        "resume": " ".join((resume_command(folder, cfg), *(f"{key}=N" for key in limits))),
        "evaluate": f"{simclr_command()} evaluate {run}" + " data=folder data.path=LABELLED" * unlabelled + trusted,
        "embed": f"{simclr_command()} embed {run} IMAGES OUT.npz" + "".join(f" --trusted {name}" for name in packages),
        "sync": sync_command(folder),
    }
    console.print(f"everything is in {shown(folder)}", soft_wrap=True, markup=False)
    for name, command in commands.items():
        if command:
            console.print(f"  {name:9} {command}", soft_wrap=True, markup=False)


def _labelled(summary: dict[str, Any]) -> Table:
    """Return the table of the scores on test."""
    table = Table(title="top-1 on test", title_justify="left")
    table.add_column("what")
    table.add_column("score", justify="right")
    rows = {
        "kNN on raw pixels": "knn_top1_pixels",
        "kNN on the untrained encoder": "knn_top1_untrained",
        "kNN on the trained encoder": "knn_top1",
        "linear probe on the trained encoder": "linear_top1",
    }
    for name, key in rows.items():
        value = summary.get(key)
        table.add_row(name, "-" if value is None else f"{value:.1%}")
    return table


def _unlabelled(folder: Path) -> Table:
    """Return the table of the scores without labels, after the first and after the last scored epoch."""
    table = Table(title="no labels: two views of each held-out image", title_justify="left")
    table.add_column("what")
    for name in ("first", "last"):
        table.add_column(name, justify="right")
    scored = [scores for row in read_table(folder / METRICS) if (scores := online_scores(row))]
    ends: tuple[dict[str, float], dict[str, float]] = (scored[0], scored[-1]) if scored else ({}, {})
    for name, (key, form) in _WITHOUT_LABELS.items():
        cells = (form.format(scores[key]) if key in scores else "-" for scores in ends)
        table.add_row(name, *cells)
    return table


def opening_notes(cfg: DictConfig, parts: Parts, total: int, first_step: int = 0) -> list[str]:
    """Return the lines that a run prints before its first step: images, steps, BatchNorm, precision, warm-up, rates."""
    devices = device_count(cfg) * cfg.trainer.num_nodes
    batch, images = parts.data.batch_size, parts.data.load().training_images
    lines = [
        f"{images} images, {parts.data.steps_per_epoch} steps an epoch of {batch} images on {devices} "
        f"{accelerator(cfg)} device(s), {2 * batch - 2} negatives a view, {total} steps"
    ]
    shared, part = devices_of_a_batchnorm(cfg), cfg.micro_batch_size or batch
    if devices > 1 and accelerator(cfg) == "cpu":
        lines.append("BatchNorm statistics are per process on the CPU (synchronized BatchNorm exists on GPUs only)")
    elif devices > shared:
        whose = f"shared by groups of {shared} devices" if shared > 1 else "per device"
        lines.append(f"BatchNorm statistics are {whose}: those of {shared * part // devices} images")
    lines += [line] if (line := performance.note(cfg, accelerator(cfg), total)) else []
    if cfg.micro_batch_size is not None:
        lines.append(
            f"micro-batches of {cfg.micro_batch_size} images with the gradient of {batch}; BatchNorm normalizes each"
        )
    if cfg.ema is not None:
        lines.append(f"scores, best.ckpt and the exported encoder are of the weights' moving average (ema={cfg.ema})")
    schedule = parts.module.make_schedule
    epochs, spe = getattr(schedule, "warmup_epochs", 0), parts.data.steps_per_epoch
    if round(epochs * spe) > total:
        shortened = schedule.warmup_steps(spe, total)  # type: ignore[union-attr]
        lines.append(f"warm-up of {epochs} epochs is longer than the run; it is shortened to {shortened} steps")
    lines += weights_note(cfg.model.weights)
    if 0 < first_step < total and (rates := _rates(parts, (first_step, total - 1), total)):
        lines.append(
            f"goes on at step {first_step} of {total}: the learning rate is {rates[0]:.3g} at the next step and "
            f"{rates[1]:.3g} at the last one"
        )
    if cfg.views.size <= 32 and parts.data.load().train.tensor is None:
        lines.append(
            f"views are {cfg.views.size} px; for a real encoder on a GPU: experiment=imagenet with the same data"
        )
    return lines


def _rates(parts: Parts, steps: tuple[int, int], total: int) -> list[float]:
    """Return the learning rates of the first parameter group after so many steps; none for schedules of other types."""
    made = make_scheduler(
        parts.module.make_schedule,
        parts.module.make_optimizer(parameter_groups(parts.module)),
        global_batch_size=parts.data.batch_size,
        steps_per_epoch=parts.data.steps_per_epoch,
        total_steps=total,
    )
    scheduler = None if made is None else made["scheduler"]
    if not isinstance(scheduler, LambdaLR):
        return []
    return [float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)) for step in steps]
