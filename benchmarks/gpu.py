"""Speed and memory of this package on a GPU, in one run of at most ten minutes.

    python benchmarks/gpu.py                          # on the first CUDA device
    python benchmarks/gpu.py --device cpu --quick     # a smoke run of the whole script at tiny sizes

Sections: NT-Xent from N 256 to 8192, next to lightly's; views at 32 and 224 pixels; the bare encoder and projector
(forward, backward, optimizer on a synthetic batch) of ResNet-18 at 32 and ResNet-50 at 224 pixels in float32, bf16,
channels_last and compiled; the whole step with its efficiency (see step.py); and lightly's own training loop, where
its package is installed (`pip install lightly`). The script names a section that fails on stderr and goes on. It
starts no section after --seconds.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from _harness import (
    Run,
    alternate,
    arguments,
    cuda_peak_bytes,
    device_name,
    left_out,
    now,
    parse,
    seconds,
    table,
    write,
)
from simclr_lightning import LARS, Projector, finish_views, make_views, nt_xent, parameter_groups, resnet
from simclr_lightning.app import training
from simclr_lightning.preflight.copies import views
from step import FEW_SAVES, JPEGS, measure as measure_step

Row = dict[str, Any]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WIDTH = 128
WORKERS = 14
COLUMNS = {
    "task": "{task}",
    "model": "{model}",
    "size": "{size}",
    "batch": "{batch}",
    "what": "{what}",
    "ms": "{ms:,.2f}",
    "images/s": "{images_per_second:,.0f}",
    "peak MB": "{peak_mb:,.0f}",
    "efficiency": "{efficiency:.3f}",
}
# What a bare step is run with, in the order of the table.
VARIANTS: dict[str, dict[str, bool]] = {
    "float32": {},
    "bf16": {"half": True},
    "bf16, channels_last": {"half": True, "last": True},
    "bf16, channels_last, compiled": {"half": True, "last": True, "compiled": True},
}


@dataclass(frozen=True)
class Sizes:
    """Batch sizes, numbers of images and of repeats."""

    pairs: tuple[int, ...] = (256, 1024, 4096, 8192)
    images_32: int = 4096
    images_224: int = 256
    encoders: tuple[tuple[int, int, int], ...] = ((18, 32, 512), (50, 224, 256))  # depth, pixels, batch
    repeats: int = 10
    chunks: int = 8
    steps: int = 10
    compiled: bool = True


QUICK = Sizes((16, 32), 8, 2, ((18, 32, 4), (50, 64, 2)), repeats=1, chunks=2, steps=1, compiled=False)


def row_of(task: str, what: str, batch: int, took: float, peak: float | None = None, **more: object) -> Row:
    """Return a row of the table; ``took`` is in seconds, ``peak`` in MB."""
    return {"task": task, "what": what, **more, "batch": batch, "ms": 1e3 * took, "peak_mb": peak}


def rate(took: float, batch: int) -> float:
    return round(batch / took, 1)


def measured(runs: dict[str, Run], device: torch.device, repeats: int) -> Iterator[tuple[str, float, float | None]]:
    """Yield each run's name, its median seconds in turns with the others, and its peak MB (None on the CPU)."""
    for name, times in alternate(runs, repeats, partial(seconds, device=device)).items():
        peak = round(cuda_peak_bytes(runs[name], device) / 1e6, 1) if device.type == "cuda" else None
        yield name, statistics.median(times), peak


def losses(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    methods: dict[str, Loss] = {"ours": lambda z_a, z_b: nt_xent(z_a, z_b, 0.1).loss}
    try:
        from lightly.loss import NTXentLoss

        methods["lightly"] = NTXentLoss(temperature=0.1)
    except ImportError as error:
        left_out("lightly's loss", error)

    def run(loss: Loss, z_a: torch.Tensor, z_b: torch.Tensor) -> None:
        z_a.grad = z_b.grad = None
        loss(z_a, z_b).backward()

    for pairs in sizes.pairs:
        z_a, z_b = (torch.randn(pairs, WIDTH, device=device).requires_grad_() for _ in range(2))
        runs: dict[str, Run] = {name: partial(run, loss, z_a, z_b) for name, loss in methods.items()}
        for name, took, peak in measured(runs, device, sizes.repeats):
            yield row_of("loss", name, pairs, took, peak)


def both_views(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    draw = torch.Generator(device).manual_seed(0)
    tasks: list[tuple[int, str, Any, str, tuple[int, ...]]] = [
        (32, "whole", make_views, "simclr_cifar", (sizes.images_32, 3, 32, 32)),
        (224, "finishing of crops that workers made", finish_views, "simclr", (sizes.images_224, 2, 3, 224, 224)),
    ]
    for size, what, make, recipe, shape in tasks:
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=draw)
        run = partial(make, images, seed=0, epoch=0, indices=torch.arange(len(images)), recipe=recipe)
        for _, took, peak in measured({what: run}, device, sizes.repeats):
            images_per_second = rate(took, len(images))
            yield row_of("views", what, len(images), took, peak, size=size, images_per_second=images_per_second)


def bare(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    for depth, size, batch in sizes.encoders:
        encoder = resnet(depth, stem="cifar" if size <= 32 else "imagenet")
        network = nn.Sequential(encoder, Projector(encoder.feature_dim)).to(device)
        for what, options in VARIANTS.items():
            if options.get("compiled") and not sizes.compiled:
                continue
            run = training_step(copy.deepcopy(network), batch, size, device, **options)
            for _, took, peak in measured({what: run}, device, sizes.repeats):
                more = {"size": size, "model": f"resnet{depth}", "images_per_second": rate(took, batch)}
                yield row_of("bare step", what, batch, took, peak, **more)


def training_step(
    network: nn.Module,
    batch: int,
    size: int,
    device: torch.device,
    *,
    half: bool = False,
    last: bool = False,
    compiled: bool = False,
) -> Run:
    """Return forward, backward and LARS on one synthetic batch."""
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.cat(views(batch, size, device)).to(memory_format=layout)
    network.to(memory_format=layout)
    optimizer = LARS(parameter_groups(network), lr=0.1)
    forward = torch.compile(network) if compiled else network

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            z = forward(x)
        z.backward(torch.full_like(z, 1e-4))
        optimizer.step()

    return run


def whole(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    common = [f"trainer.accelerator={device.type}", f"trainer.precision={precision}", FEW_SAVES]
    workers = WORKERS if device.type == "cuda" else 0
    for depth, size, batch in sizes.encoders:
        data = ["data=photos"] if size <= 32 else ["data=folder", JPEGS, f"data.num_workers={workers}"]
        overrides = [f"experiment={'cifar10' if size <= 32 else 'imagenet'}", f"model=resnet{depth}", *data, *common]
        overrides += [f"data.batch_size={batch}", f"views.size={size}"]
        row = measure_step(f"resnet{depth}/{size}", overrides, chunks=sizes.chunks, steps=sizes.steps)
        more = {"model": f"resnet{depth}", "images_per_second": row["whole_images_per_second"]}
        yield {**row, "task": "whole step", "what": precision, **more}


def lightly_loop(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Train with lightly's transform, collation, head and loss around torchvision's ResNet, as in its documentation."""
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    class Pictures(Dataset[Any]):
        def __init__(self, size: int, count: int) -> None:
            self.transform = SimCLRTransform(input_size=size, gaussian_blur=0.0 if size <= 32 else 0.5)
            self.image = Image.effect_noise((size, size) if size <= 32 else (500, 375), 60).convert("RGB")
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, index: int) -> Any:
            return self.transform(self.image)

    workers = WORKERS if device.type == "cuda" else 0
    for depth, size, batch in sizes.encoders:
        encoder = getattr(torchvision.models, f"resnet{depth}")()
        width = encoder.fc.in_features
        encoder.fc = nn.Identity()
        network = nn.Sequential(encoder, SimCLRProjectionHead(width, width, WIDTH)).to(device)
        optimizer, loss = torch.optim.SGD(network.parameters(), lr=0.06), NTXentLoss()
        steps = sizes.steps if size > 32 else 3 * sizes.steps
        loader = DataLoader(Pictures(size, batch * (steps + 1)), batch, num_workers=workers, drop_last=True)
        marks = []
        for x_a, x_b in loader:
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                z_a, z_b = (network(x.to(device, non_blocking=True)) for x in (x_a, x_b))
            loss(z_a.float(), z_b.float()).backward()
            optimizer.step()
            marks.append(now(device))
        took = (marks[-1] - marks[0]) / (len(marks) - 1)
        more = {"size": size, "model": f"resnet{depth}", "images_per_second": rate(took, batch)}
        yield row_of("lightly's loop", "bf16" if workers else "float32", batch, took, **more)


SECTIONS = (losses, both_views, bare, whole, lightly_loop)


def loss_share(rows: list[Row]) -> float | None:
    """Return the loss's share of a ResNet-50 step at N 4096; the step's time is scaled from its batch."""
    loss = [r["ms"] for r in rows if r["task"] == "loss" and r["what"] == "ours" and r["batch"] == 4096]
    steps = [r["ms"] * 4096 / r["batch"] for r in rows if r["task"] == "bare step" and r["model"] == "resnet50"]
    return loss[0] / min(steps) if loss and steps else None


def run_sections(sizes: Sizes, device: torch.device, limit: float) -> list[Row]:
    """Run the sections in order until ``limit`` seconds have passed."""
    start, rows = time.monotonic(), []
    for section in SECTIONS:
        try:
            if time.monotonic() - start > limit:
                raise TimeoutError(f"{limit:.0f} s have passed")
            rows += section(sizes, device)
        except Exception as error:
            left_out(section.__name__, error)
    return rows


def main() -> int:
    parser = arguments(__file__, __doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=540, help="start no section after so many")
    options = parse(parser)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device was found; --device cpu --quick shows that the script works", file=sys.stderr)
        return 1
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    training.quiet_libraries()
    rows = run_sections(QUICK if options.quick else Sizes(), device, options.seconds)
    print(table(COLUMNS, rows))
    share = loss_share(rows)
    if share is not None:
        print(f"loss at N 4096: {share:.2%} of a ResNet-50 step")
    about = {"device": device_name(device), "quick": options.quick, "loss_share": share}
    write(options, "torch", "torchvision", "lightning", "lightly", **about, rows=rows)
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
