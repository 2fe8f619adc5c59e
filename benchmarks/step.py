"""Efficiency of the whole training step, and where the rest goes.

    python benchmarks/step.py                       # the default run's model on the CPU; two or three minutes
    python benchmarks/step.py --threads 2 --chunks 12 --steps 20
    python benchmarks/step.py --quick               # a smoke run

Efficiency is images/s of the whole training over images/s of the bare encoder and projector: forward, backward and
optimiser on a synthetic batch that is on the device, in the same precision. Both run in one process, in turns of a few
steps: the training pauses after each turn, so that a busy moment hits both, and medians over the turns count. The
whole is what `simclr train` runs (the same trainer, callbacks and CSV log), without scores between epochs. A second run
times the pieces of a training step: data and views, the loss, forward, backward, the optimiser, callbacks and the
trainer around them. On a GPU the pieces are timed with the device waited for; the efficiency is not.

Where CUDA is there, ResNet-18 at 32 pixels and ResNet-50 at 224 follow. "Import to first step" is a fresh process of
`simclr train` that stops after one step, without scores and pictures. GPU rows: not yet run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from machine import machine, processor
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.app.training import performance
from simclr_lightning.app.training.build import Parts, build
from simclr_lightning.app.training.signals import StopSignals
from simclr_lightning.app.training.trainer import make_trainer, quiet_libraries, total_steps
from simclr_lightning.optim import parameter_groups
from simclr_lightning.preflight.copies import now, trial, views
from simclr_lightning.simclr import SimCLR

FEW_SAVES = "callbacks.checkpoints.every_n_epochs=20"  # epochs of photos are far shorter than those of CIFAR-10
GPU = ["trainer.accelerator=cuda", "trainer.precision=bf16-mixed", FEW_SAVES]
JPEGS = "data.path=JPEGS"  # stands for a folder of photographs of 500 x 375, made for the run
TASKS = {
    "photos": ["experiment=photos", "trainer.accelerator=cpu"],
    "resnet18/32": ["experiment=cifar10", "data=photos", "data.batch_size=512", *GPU],
    "resnet50/224": [
        "experiment=imagenet", "data=folder", JPEGS, "data.batch_size=256", f"data.num_workers={os.cpu_count()}", *GPU
    ],
}  # fmt: skip
HOOKS = ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end")
PIECES = ("data and views", "forward", "loss", "backward", "optimiser", "callbacks", "trainer and rest")


class Turns(L.Callback):
    """Pauses the training after every ``steps`` steps for as many of the bare step, and keeps the seconds of both."""

    def __init__(self, bare: Callable[[], None], device: torch.device, *, steps: int, chunks: int) -> None:
        self.bare, self.device, self.steps, self.chunks = bare, device, steps, chunks
        self.whole: list[float] = []
        self.alone: list[float] = []
        self.mark = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.steps:
            return
        done = now(self.device)
        if self.mark:  # the first turn warms up
            self.whole.append(done - self.mark)
        start = now(self.device)
        for _ in range(self.steps):
            self.bare()
        end = now(self.device)
        if self.mark:
            self.alone.append(end - start)
        trainer.should_stop = len(self.whole) >= self.chunks
        self.mark = now(self.device)


class Clock:
    """Adds up the seconds that wrapped functions take, without those of wrapped functions inside them."""

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
    """Puts clocks around the pieces of the step after a warm-up, and stops after ``steps`` more."""

    def __init__(self, device: torch.device, *, warm: int, steps: int) -> None:
        self.clock = Clock(device)
        self.warm, self.steps = warm, steps
        self.total = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        clock, data = self.clock, trainer.datamodule  # type: ignore[attr-defined]
        fetcher = trainer.fit_loop._data_fetcher
        clock.wrap(data, "on_after_batch_transfer", "data and views")
        clock.wrap(fetcher, "__next__", "data and views")
        clock.wrap(pl_module, "contrast", "forward")
        clock.wrap(pl_module.loss, "forward", "loss")
        clock.wrap(pl_module, "backward", "backward")
        clock.wrap(trainer.strategy, "optimizer_step", "optimiser")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for hook in (
                "on_before_backward",
                "on_before_optimizer_step",
                "on_train_batch_end",
                "on_train_batch_start",
            ):
                if callback is not self and hook in vars(type(callback)):
                    clock.wrap(callback, hook, "callbacks")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.warm:
            self.clock.seconds.clear()
            self.total = now(self.clock.device)
        if trainer.global_step == self.warm + self.steps:
            self.total = now(self.clock.device) - self.total
            trainer.should_stop = True


def bare_step(module: SimCLR, batch: int, size: int, device: torch.device, context: Any) -> Callable[[], None]:
    """Forward, backward and optimiser of encoder and projector on one synthetic batch, on a copy."""
    twin = trial(module, device)
    x_a, x_b = views(batch, size, device)
    x = torch.cat((x_a, x_b))
    optimizer = twin.make_optimizer(parameter_groups(twin))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with context():
            z = twin.projector(twin.encoder(x))
        z.backward(torch.full_like(z, 1e-4))
        optimizer.step()

    return step


def prepared(words: list[str], folder: Path) -> tuple[Parts, L.Trainer]:
    """What `simclr train` would run, without scores between epochs."""
    cfg = locate_checked([*words, "callbacks.online.every_n_epochs=0", "trainer.max_epochs=1000"]).cfg
    parts = build(cfg)
    steps = parts.data.steps_per_epoch
    trainer, _ = make_trainer(
        folder,
        cfg,
        total=total_steps(cfg, steps),
        steps_per_epoch=steps,
        signals=StopSignals(),
        console=Console(file=io.StringIO()),
    )
    return parts, trainer


def measure(name: str, words: list[str], *, chunks: int, steps: int) -> dict[str, Any]:
    """Efficiency of one task in turns, then the split of its step."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if JPEGS in words:
            words = [f"data.path={jpeg_folder(folder / 'jpegs', 2048)}" if word == JPEGS else word for word in words]
        parts, trainer = prepared(words, folder)
        device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
        batch, size = parts.data.batch_size, parts.data.recipe.size
        bare = bare_step(parts.module, batch, size, device, context)
        turns = Turns(bare, device, steps=steps, chunks=chunks)
        trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        with performance.products(tf32=True, kind=device.type):  # for both sides
            trainer.fit(parts.module, datamodule=parts.data)
        parts, trainer = prepared(words, folder)
        split = Split(device, warm=steps, steps=steps * max(2, chunks // 2))
        trainer.callbacks.append(split)  # type: ignore[attr-defined]
        trainer.fit(parts.module, datamodule=parts.data)
    images = steps * batch
    pieces = {piece: split.clock.seconds.get(piece, 0.0) for piece in PIECES[:-1]}
    pieces[PIECES[-1]] = split.total - sum(pieces.values())
    return {
        "task": name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "batch": batch,
        "size": size,
        "whole_images_per_second": round(images / statistics.median(turns.whole), 1),
        "bare_images_per_second": round(images / statistics.median(turns.alone), 1),
        "peak_mb": round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None,
        "efficiency": round(efficiency(turns.whole, turns.alone), 4),
        "efficiency_of_totals": round(sum(turns.alone) / sum(turns.whole), 4),
        "turns": len(turns.whole),
        "split": {piece: round(seconds / split.total, 4) for piece, seconds in pieces.items()},
    }


def jpeg_folder(folder: Path, count: int) -> Path:
    """``count`` files with the photographs of the benchmark of views, some of them many times."""
    from views import jpegs

    folder.mkdir()
    few = jpegs(16)
    for index in range(count):
        (folder / f"{index:05d}.jpg").write_bytes(few[index % len(few)].numpy().tobytes())
    return folder


def efficiency(whole: list[float], alone: list[float]) -> float:
    """The median over the turns of bare seconds over whole seconds, each turn's beside each other."""
    return statistics.median(a / w for w, a in zip(whole, alone, strict=True))


def first_step_seconds(words: list[str], threads: int) -> float:
    """Seconds from the start of a fresh process to the end of its first training step."""
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        more = ["callbacks.metrics.every_n_steps=1", "trainer.max_steps=3", f"hydra.run.dir={place}/run"]
        command = [sys.executable, "-m", "simclr_lightning.cli", "train", *words, *more]
        start = time.perf_counter()
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        metrics = Path(place, "run", "metrics.csv")
        while not (metrics.exists() and metrics.stat().st_size):
            if run.poll() is not None:
                assert run.stderr is not None
                raise RuntimeError(run.stderr.read().decode())
            time.sleep(0.02)
        took = time.perf_counter() - start
        run.terminate()
        run.wait()
        return took


def table(rows: list[dict[str, Any]]) -> str:
    head = ("task", "device", "batch", "whole, images/s", "bare, images/s", "efficiency", *PIECES)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        rates = (f"{row[key]:,.0f}" for key in ("whole_images_per_second", "bare_images_per_second"))
        shares = (f"{row['split'][piece]:.1%}" for piece in PIECES)
        cells = (row["task"], row["device"], row["batch"], *rates, f"{row['efficiency']:.3f}", *shares)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="all that this machine can run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--chunks", type=int, default=12, help="turns of each side")
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--quick", action="store_true", help="a smoke run: nothing of it is a figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    chunks, steps = (2, 2) if options.quick else (options.chunks, options.steps)
    torch.set_num_threads(options.threads)
    quiet_libraries()
    chosen = options.tasks or [name for name in TASKS if name == "photos" or torch.cuda.is_available()]
    rows = [measure(name, TASKS[name], chunks=chunks, steps=steps) for name in chosen]
    repeats = 1 if options.quick else 3
    first = statistics.median(first_step_seconds(TASKS["photos"], options.threads) for _ in range(repeats))
    print(table(rows))
    print(f"import to first step: {first:.1f} s")
    head = {
        **machine("torch", "lightning"),
        "threads": options.threads,
        "import_to_first_step_s": round(first, 2),
    }
    options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
