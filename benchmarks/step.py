"""Efficiency of the whole training step, and the share of each of its parts.

    python benchmarks/step.py                       # the default run's model on the CPU; two or three minutes
    python benchmarks/step.py --threads 2 --chunks 12 --steps 20
    python benchmarks/step.py --quick               # a smoke run

Efficiency is images/s of the whole training over images/s of the bare encoder and projector: forward, backward and
optimizer on a synthetic batch that is on the device, in the same precision. One process runs both in turns of a few
steps: the training pauses after each turn, so that a busy moment hits both. The efficiency is the median over the
turns of the ratio. The whole is what `simclr train` runs (the same trainer, callbacks and CSV log), without scores
between epochs. A second run times the parts of a training step: data and views, the loss, forward, backward, the
optimizer, callbacks, and the trainer around them. On a GPU the second run waits for the device at every part; the
first waits at the ends of turns only.

With CUDA, ResNet-18 at 32 pixels and ResNet-50 at 224 pixels follow. "Import to first step" is a new process of
`simclr train` that stops after one step, without scores and pictures.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from _harness import Run, arguments, device_name, now, parse, ratio, table, write
from _images import jpeg_folder
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.build import Parts, build
from simclr_lightning.app.training.trainer import make_trainer, quiet_libraries, total_steps
from simclr_lightning.optim import parameter_groups
from simclr_lightning.preflight.copies import trial, views
from simclr_lightning.simclr import SimCLR

FEW_SAVES = "callbacks.checkpoints.every_n_epochs=20"  # epochs of photos are far shorter than those of CIFAR-10
GPU = ["trainer.accelerator=cuda", "trainer.precision=bf16-mixed", FEW_SAVES]
JPEGS = "data.path=JPEGS"  # `measure` puts a folder of photographs of 500 x 375 pixels in its place
TASKS = {
    "photos": ["experiment=photos", "trainer.accelerator=cpu"],
    "resnet18/32": ["experiment=cifar10", "data=photos", "data.batch_size=512", *GPU],
    "resnet50/224": [
        "experiment=imagenet", "data=folder", JPEGS, "data.batch_size=256", f"data.num_workers={os.cpu_count()}", *GPU
    ],
}  # fmt: skip
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")
PIECES = ("data and views", "forward", "loss", "backward", "optimiser", "callbacks", "trainer and rest")
COLUMNS = {
    "task": "{task}",
    "device": "{device}",
    "batch": "{batch}",
    "whole, images/s": "{whole_images_per_second:,.0f}",
    "bare, images/s": "{bare_images_per_second:,.0f}",
    "efficiency": "{efficiency:.3f}",
    **{piece: f"{{split[{piece}]:.1%}}" for piece in PIECES},
}


class Turns(L.Callback):
    """Pauses the training after every ``steps`` steps for as many bare steps, and records the seconds of both."""

    def __init__(self, bare: Run, device: torch.device, *, steps: int, chunks: int) -> None:
        self.bare, self.device, self.steps, self.chunks = bare, device, steps, chunks
        self.whole: list[float] = []
        self.alone: list[float] = []
        self.mark = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.steps:
            return
        done = now(self.device)
        for _ in range(self.steps):
            self.bare()
        end = now(self.device)
        if self.mark:  # the first turn warms up
            self.whole.append(done - self.mark)
            self.alone.append(end - done)
        trainer.should_stop = len(self.whole) >= self.chunks
        self.mark = now(self.device)


class Clock:
    """Adds up the seconds of wrapped methods, without those of wrapped methods that they call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside: list[float] = []

    @contextlib.contextmanager
    def piece(self, name: str) -> Iterator[None]:
        self.inside.append(0.0)
        start = now(self.device)
        try:
            yield
        finally:
            took = now(self.device) - start
            self.seconds[name] += took - self.inside.pop()
            if self.inside:
                self.inside[-1] += took

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Time a method of one object from now on."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.piece(name):
                return original(*args, **kwargs)

        object.__setattr__(owner, method, timed)


class Split(L.Callback):
    """Times the parts of the step after ``warm`` steps, and stops the training after ``steps`` more."""

    def __init__(self, device: torch.device, *, warm: int, steps: int) -> None:
        self.clock = Clock(device)
        self.warm, self.steps = warm, steps
        self.total = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        clock, data = self.clock, trainer.datamodule  # type: ignore[attr-defined]
        clock.wrap(data, "on_after_batch_transfer", "data and views")
        clock.wrap(trainer.fit_loop._data_fetcher, "__next__", "data and views")
        clock.wrap(pl_module, "contrast", "forward")
        clock.wrap(pl_module.loss, "forward", "loss")
        clock.wrap(pl_module, "backward", "backward")
        clock.wrap(trainer.strategy, "optimizer_step", "optimiser")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for hook in HOOKS:
                if callback is not self and hook in vars(type(callback)):
                    clock.wrap(callback, hook, "callbacks")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.warm:
            self.clock.seconds.clear()
            self.total = now(self.clock.device)
        if trainer.global_step == self.warm + self.steps:
            self.total = now(self.clock.device) - self.total
            trainer.should_stop = True

    def shares(self) -> dict[str, float]:
        """Return each part's share of the time of a step."""
        parts = {piece: self.clock.seconds.get(piece, 0.0) for piece in PIECES[:-1]}
        parts[PIECES[-1]] = self.total - sum(parts.values())
        return {piece: round(seconds / self.total, 4) for piece, seconds in parts.items()}


def bare_step(module: SimCLR, batch: int, size: int, device: torch.device, context: Any) -> Run:
    """Return a step of a copy of encoder and projector on one synthetic batch: forward, backward, optimizer."""
    twin = trial(module, device)
    x = torch.cat(views(batch, size, device))
    optimizer = twin.make_optimizer(parameter_groups(twin))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with context():
            z = twin.projector(twin.encoder(x))
        z.backward(torch.full_like(z, 1e-4))
        optimizer.step()

    return step


def prepared(overrides: list[str], folder: Path) -> tuple[Parts, L.Trainer]:
    """Build what `simclr train` would run, without scores between epochs."""
    cfg = locate_checked([*overrides, "callbacks.online.every_n_epochs=0", "trainer.max_epochs=1000"]).cfg
    parts = build(cfg)
    steps = parts.data.steps_per_epoch
    trainer, _ = make_trainer(
        folder,
        cfg,
        total=total_steps(cfg, steps),
        steps_per_epoch=steps,
        console=Console(file=io.StringIO()),
    )
    return parts, trainer


def measure(name: str, overrides: list[str], *, chunks: int, steps: int) -> dict[str, Any]:
    """Measure the efficiency of one task in turns, then the parts of its step."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if JPEGS in overrides:
            path = jpeg_folder(folder / "jpegs", 2048)
            overrides = [f"data.path={path}" if override == JPEGS else override for override in overrides]
        parts, trainer = prepared(overrides, folder)
        device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        batch, size = parts.data.batch_size, parts.data.recipe.size
        turns = Turns(bare_step(parts.module, batch, size, device, context), device, steps=steps, chunks=chunks)
        trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        with performance.products(tf32=True, kind=device.type):  # for both sides
            trainer.fit(parts.module, datamodule=parts.data)
        parts, trainer = prepared(overrides, folder)
        split = Split(device, warm=steps, steps=steps * max(2, chunks // 2))
        trainer.callbacks.append(split)  # type: ignore[attr-defined]
        trainer.fit(parts.module, datamodule=parts.data)
    images = steps * batch
    return {
        "task": name,
        "device": device_name(device),
        "batch": batch,
        "size": size,
        "whole_images_per_second": round(images / statistics.median(turns.whole), 1),
        "bare_images_per_second": round(images / statistics.median(turns.alone), 1),
        "peak_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None,
        "efficiency": round(ratio(turns.alone, turns.whole), 4),
        "efficiency_of_totals": round(sum(turns.alone) / sum(turns.whole), 4),
        "turns": len(turns.whole),
        "split": split.shares(),
    }


def first_step_seconds(overrides: list[str], threads: int) -> float:
    """Return the seconds from the start of a new process to the end of its first training step."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        more = ["callbacks.metrics.every_n_steps=1", "trainer.max_steps=3", f"hydra.run.dir={temporary}/run"]
        command = [sys.executable, "-m", "simclr_lightning.cli", "train", *overrides, *more]
        start = time.perf_counter()
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        metrics = Path(temporary, "run", "metrics.csv")
        while not (metrics.exists() and metrics.stat().st_size):
            if run.poll() is not None:
                assert run.stderr is not None
                raise RuntimeError(run.stderr.read().decode())
            time.sleep(0.02)
        took = time.perf_counter() - start
        run.terminate()
        run.wait()
        return took


def main() -> None:
    parser = arguments(__file__, __doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all that this machine can run")
    parser.add_argument("--chunks", type=int, default=12, help="turns of each side")
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    options = parse(parser)
    chunks, steps, repeats = (2, 2, 1) if options.quick else (options.chunks, options.steps, 3)
    quiet_libraries()
    chosen = options.tasks or [name for name in TASKS if name == "photos" or torch.cuda.is_available()]
    rows = [measure(name, TASKS[name], chunks=chunks, steps=steps) for name in chosen]
    first = statistics.median(first_step_seconds(TASKS["photos"], options.threads) for _ in range(repeats))
    print(table(COLUMNS, rows))
    print(f"import to first step: {first:.1f} s")
    write(options, "torch", "lightning", import_to_first_step_s=round(first, 2), rows=rows)


if __name__ == "__main__":
    main()
