"""CPU seconds a pair and peak memory of the whole training step, compared with lightly's and torchvision's loops.

    python benchmarks/race.py --threads 1                           # at 32 pixels
    python benchmarks/race.py --threads 1 --jpegs FOLDER            # and ResNet-18 at 224 pixels, from FOLDER/train
    python benchmarks/race.py --knn-minutes 10 --cifar cifar10.npz  # and kNN after equal CPU minutes, three seeds
    python benchmarks/race.py --quick

All train the same encoder and projector, in the same memory format, with the same optimizer. "simclr" is what `simclr
train` runs, with its trainer, callbacks and log. "lightly" is the loop of its documentation: its transform on PIL
images in two DataLoader workers, one forward pass for each view, its loss. "torchvision" is a plain loop: transforms
v2 on each image in two workers, one forward pass over both views, cross-entropy over the whole similarity matrix.

Each turn starts one process for each contestant, one after the other. CPU seconds are user and system time of the
process and its workers, after the first steps; peak memory is that of the process alone. The ratio is the
median over the turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn

from _harness import arguments, children_cpu_seconds, left_out, parse, ratio, table, write
from simclr_lightning import machine
from simclr_lightning.app.training.build import Parts
from simclr_lightning.app.training.trainer import quiet_libraries
from simclr_lightning.evaluation import extract, knn_accuracy
from simclr_lightning.evaluation.protocols.features import checked_parts
from simclr_lightning.optim import parameter_groups
from step import prepared

CONTESTANTS = ("simclr", "lightly", "torchvision")
WARM = 3  # steps before the clock starts
WORKERS = 2
COMMON = ("trainer.accelerator=cpu", "optimizer=adamw", "loss.temperature=0.5", "preflight=false")
TASKS: dict[str, tuple[tuple[str, ...], int]] = {  # overrides, steps a turn
    **{f"tiny, 32 px, B {batch}": ((f"data.batch_size={batch}",), steps) for batch, steps in ((64, 40), (256, 10))},
    "tiny, 32 px, B 1024": (("data.batch_size=1024",), 4),
    "ResNet-18, 32 px, B 64": (("model=resnet18", "data.batch_size=64"), 4),
    "ResNet-18, 224 px, B 64": (("model=resnet18", "views=simclr", "data=folder", "data.batch_size=64"), 4),
}
COLUMNS = {
    "task": "{task}",
    "loop": "{contestant}",
    "CPU ms a pair": "{cpu_ms:.2f}",
    "simclr's share of it": "{ratio:.2f}",
    "peak MB": "{peak_mb:.0f}",
    "turns": "{turns}",
    "kNN top-1": "{knn:.1%}",
}


def cpu_now() -> float:
    """Return the CPU seconds of this process and its children."""
    return time.process_time() + children_cpu_seconds()


class Stop(L.Callback):
    """Reads the clock after `WARM` steps and after ``steps`` more, or ends the training after ``limit`` CPU seconds."""

    def __init__(self, steps: int, limit: float) -> None:
        self.steps, self.limit = steps, limit
        self.start = self.took = 0.0
        self.done = 0

    def step(self) -> bool:
        """Count a step; return whether the training is over."""
        self.done += 1
        if self.done == WARM:
            self.start = cpu_now()
        self.took = cpu_now() - self.start if self.done > WARM else 0.0
        return self.took >= self.limit if self.limit else self.done == WARM + self.steps

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        trainer.should_stop = self.step()


class Pictures(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image by a transform of PIL images; ``images`` are tensors (3, H, W) uint8, or paths."""

    def __init__(self, images: list[Any], transform: Callable[[Image.Image], tuple[Tensor, Tensor]]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if isinstance(image, Tensor):
            return self.transform(Image.fromarray(image.permute(1, 2, 0).numpy()))
        with Image.open(image) as opened:
            return self.transform(opened.convert("RGB"))


def lightly_parts(size: int) -> tuple[Callable[[Any], Any], nn.Module]:
    """Return the transform and the loss of lightly, with the recipe of ``views=simclr`` or ``views=simclr_cifar``."""
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform

    recipe = {"cj_strength": 0.5, "gaussian_blur": 0.0} if size <= 32 else {}
    return SimCLRTransform(input_size=size, normalize=None, **recipe), NTXentLoss(temperature=0.5)


def torchvision_parts(size: int) -> tuple[Callable[[Any], Any], Callable[[Tensor, Tensor], Tensor]]:
    """Return two views by transforms v2, and the dense loss."""
    from torchvision.transforms import v2

    s = 0.5 if size <= 32 else 1.0
    blur = [v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5)] if size > 32 else []
    view = v2.Compose([
        v2.ToImage(), v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], 0.8), v2.RandomGrayscale(0.2), *blur,
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        u = nn.functional.normalize(torch.cat((z_a, z_b)), dim=1)
        logits = (u @ u.T / 0.5).masked_fill(torch.eye(len(u), dtype=torch.bool), float("-inf"))
        return nn.functional.cross_entropy(logits, torch.arange(len(u)).roll(len(z_a)))

    return lambda image: (view(image), view(image)), loss


def rival(name: str, parts: Parts, stop: Stop) -> None:
    """Train as the rival does, until ``stop`` ends it."""
    data, module = parts.data, parts.module
    train = data.load().train
    kept = range(data.load().training_images)
    files = [Path(data.path or "", train.names[i]) for i in kept] if train.tensor is None else []
    images = files or [train.load(i) for i in kept]
    transform, loss_of = lightly_parts(data.recipe.size) if name == "lightly" else torchvision_parts(data.recipe.size)
    loader = torch.utils.data.DataLoader(
        Pictures(images, transform), batch_size=data.batch_size, shuffle=True, drop_last=True, num_workers=WORKERS
    )
    optimizer = module.make_optimizer(parameter_groups(module))
    module.train()
    for x_a, x_b in _forever(loader):
        if name == "lightly":
            loss = loss_of(module.project(x_a), module.project(x_b))
        else:
            loss = loss_of(*module.project(torch.cat((x_a, x_b))).chunk(2))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if stop.step():
            return


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def contest(options: argparse.Namespace) -> dict[str, float]:
    """Train as one contestant in this process; return its figures."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        if options.child == "simclr":
            machine.keep_pages()  # as `simclr train` does
        parts, trainer = prepared([*COMMON, *options.overrides], Path(folder))
        stop = Stop(options.steps, 60 * options.minutes)
        if options.child == "simclr":
            trainer.callbacks.append(stop)  # type: ignore[attr-defined]
            trainer.fit(parts.module, datamodule=parts.data)
        else:
            rival(options.child, parts, stop)
    pairs = (stop.done - WARM) * parts.data.batch_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"cpu_ms": 1e3 * stop.took / pairs, "peak_mb": peak, "steps": stop.done}
    return found | ({"knn": knn(parts)} if options.minutes else {})


def knn(parts: Parts) -> float:
    """Return kNN top-1 on test, k 20, as `simclr train` scores it."""
    splits, rows = parts.data.load(), checked_parts(parts.data)
    assert splits.test is not None
    assert splits.train.labels is not None
    assert splits.test.labels is not None
    bank, test = (
        extract(parts.module.encoder, parts.data.eval_batches(images, chosen))
        for images, chosen in ((splits.train, rows.bank), (splits.test, rows.test))
    )
    return knn_accuracy(bank, splits.train.labels[rows.bank], test, splits.test.labels[rows.test], k=20)


def start(options: argparse.Namespace, name: str, overrides: list[str], steps: int, minutes: float) -> dict[str, float]:
    """Run one contestant in a new process; return its figures."""
    command = [sys.executable, __file__, "--threads", str(options.threads), "--child", name, "--steps", str(steps)]
    command += ["--minutes", str(minutes), "--overrides", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def race(options: argparse.Namespace, task: str, overrides: list[str], steps: int, turns: int) -> list[dict[str, Any]]:
    """Run all contestants turn by turn; return a row for each."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(turns):
        for name in CONTESTANTS:
            try:
                found[name].append(start(options, name, overrides, steps, 0))
            except RuntimeError as error:
                left_out(f"{task}: {name}", error)
    times = {name: [one["cpu_ms"] for one in rows] for name, rows in found.items() if len(rows) == turns}
    return [
        {
            "task": task, "contestant": name, "turns": turns, "steps": steps,
            "cpu_ms": round(statistics.median(cpu_ms), 3), "all_cpu_ms": [round(one, 3) for one in cpu_ms],
            "ratio": round(ratio(times["simclr"], cpu_ms), 3) if "simclr" in times else None,
            "peak_mb": round(max(one["peak_mb"] for one in found[name])),
        }
        for name, cpu_ms in times.items()
    ]  # fmt: skip


def main() -> None:
    parser = arguments(__file__, __doc__, threads=1)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--jpegs", type=Path, help="a folder of photographs with a folder train, for 224 px")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as .npz for data=array, for --knn-minutes")
    parser.add_argument("--knn-minutes", type=float, default=0, help="CPU minutes of training before kNN")
    parser.add_argument("--seeds", type=int, default=3, help="of --knn-minutes")
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--overrides", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help="steps a turn; default: by the task")
    parser.add_argument("--minutes", type=float, default=0, help=argparse.SUPPRESS)
    options = parse(parser)
    if options.child:
        print(json.dumps(contest(options)))
        return
    turns = 1 if options.quick else options.turns
    rows = []
    for task in options.tasks or (list(TASKS)[:1] if options.quick else TASKS):
        overrides, steps = list(TASKS[task][0]), options.steps or (2 if options.quick else TASKS[task][1])
        if "data=folder" in overrides:
            if options.jpegs is None:
                left_out(task, ValueError("give --jpegs"))
                continue
            overrides += [f"data.path={options.jpegs.resolve()}", f"data.num_workers={WORKERS}"]
        rows += race(options, task, overrides, steps, turns)
    if options.knn_minutes:
        data = ["data=array", f"data.path={options.cifar.resolve()}", "data.batch_size=256"]
        for name in CONTESTANTS:
            found = [start(options, name, [*data, f"seed={s}"], 1, options.knn_minutes) for s in range(options.seeds)]
            scores = [one["knn"] for one in found]
            task = f"CIFAR-10, tiny, {options.knn_minutes:g} CPU minutes"
            rows += [{"task": task, "contestant": name, "knn": statistics.mean(scores), "scores": scores}]
    print(table(COLUMNS, rows))
    write(options, "torch", "torchvision", "lightning", "lightly", "pillow", rows=rows)


if __name__ == "__main__":
    main()
