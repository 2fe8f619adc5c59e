"""What this package does on a GPU, in one run of at most ten minutes: loss, views, bare encoder, whole step, memory.

    python benchmarks/gpu.py                          # on the first CUDA device; prints one table, writes gpu.json
    python benchmarks/gpu.py --device cpu --quick     # the whole script at tiny sizes: nothing of it is a figure

NT-Xent from N 256 to 8192 beside lightly's; views at 32 and 224 pixels; the bare encoder and projector (forward,
backward, optimiser on a synthetic batch) of ResNet-18 at 32 and ResNet-50 at 224 pixels in float32, bf16,
channels_last and compiled; the whole step with its efficiency (see step.py); and lightly's own training loop, where
its package can be imported (`pip install lightly`). A section that fails is said and left out; when the time is over,
so are the rest.

Not yet run on a GPU. The rows of `--device cpu --quick` only show that the script works.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from machine import machine, processor
from simclr_lightning import LARS, Projector, finish_views, make_views, nt_xent, parameter_groups, resnet
from simclr_lightning.app.training.trainer import quiet_libraries
from simclr_lightning.preflight.copies import now, views
from step import FEW_SAVES, JPEGS
from step import measure as measure_step

Row = dict[str, Any]
WIDTH = 128


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    pairs: tuple[int, ...] = (256, 1024, 4096, 8192)
    images_32: int = 4096
    images_224: int = 256
    encoders: tuple[tuple[int, int, int], ...] = ((18, 32, 512), (50, 224, 256))  # depth, pixels, batch
    repeats: int = 10
    chunks: int = 8
    steps: int = 10
    compiled: bool = True


QUICK = Sizes((16, 32), 8, 2, ((18, 32, 4), (50, 64, 2)), repeats=1, chunks=2, steps=1, compiled=False)


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median of ``repeats`` after a warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = now(device)
        run()
        times.append(now(device) - start)
    return statistics.median(times)


def peak_mb(run: Callable[[], object], device: torch.device) -> float | None:
    """What the allocator holds at most beyond what it held before; None on the CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 1)


def losses(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    methods: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "ours": lambda z_a, z_b: nt_xent(z_a, z_b, 0.1).loss
    }
    try:
        from lightly.loss import NTXentLoss

        methods["lightly"] = NTXentLoss(temperature=0.1)
    except ImportError:
        print("lightly is not installed: its rows are left out", file=sys.stderr)
    for pairs in sizes.pairs:
        z_a, z_b = (torch.randn(pairs, WIDTH, device=device).requires_grad_() for _ in range(2))
        for name, loss in methods.items():

            def run(loss: Any = loss, z_a: torch.Tensor = z_a, z_b: torch.Tensor = z_b) -> None:
                z_a.grad = z_b.grad = None
                loss(z_a, z_b).backward()

            took = seconds(run, device, sizes.repeats)
            yield {"task": "loss", "what": name, "batch": pairs, "ms": 1e3 * took, "peak_mb": peak_mb(run, device)}


def both_views(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    draw = torch.Generator(device).manual_seed(0)
    shapes = {32: (sizes.images_32, 3, 32, 32), 224: (sizes.images_224, 2, 3, 224, 224)}
    for size, shape in shapes.items():
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=draw)
        make, recipe = (make_views, "simclr_cifar") if size == 32 else (finish_views, "simclr")
        indices = torch.arange(len(images))

        def run(make: Any = make, images: Any = images, indices: Any = indices, recipe: str = recipe) -> object:
            return make(images, seed=0, epoch=0, indices=indices, recipe=recipe)

        what = "whole" if size == 32 else "finishing of crops that workers made"
        yield rate("views", what, size, len(images), seconds(run, device, sizes.repeats), peak_mb(run, device))


def bare(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    for depth, size, batch in sizes.encoders:
        encoder = resnet(depth, stem="cifar" if size <= 32 else "imagenet")
        network = nn.Sequential(encoder, Projector(encoder.feature_dim)).to(device)
        for what, options in variants(sizes):
            run = training_step(copy.deepcopy(network), batch, size, device, **options)
            took = seconds(run, device, sizes.repeats)
            row = rate("bare step", what, size, batch, took, peak_mb(run, device))
            yield {**row, "model": f"resnet{depth}"}


def variants(sizes: Sizes) -> list[tuple[str, dict[str, bool]]]:
    found: list[tuple[str, dict[str, bool]]] = [
        ("float32", {}),
        ("bf16", {"half": True}),
        ("bf16, channels_last", {"half": True, "last": True}),
    ]
    return [*found, ("bf16, channels_last, compiled", {"half": True, "last": True, "compiled": True})][
        : None if sizes.compiled else 3
    ]


def training_step(
    network: nn.Module,
    batch: int,
    size: int,
    device: torch.device,
    *,
    half: bool = False,
    last: bool = False,
    compiled: bool = False,
) -> Callable[[], None]:
    """Forward, backward and LARS on one synthetic batch."""
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.cat(views(batch, size, device)).to(memory_format=layout)
    network.to(memory_format=layout)
    optimizer = LARS(parameter_groups(network), lr=0.1)
    forward = torch.compile(network) if compiled else network

    def context() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with context():
            z = forward(x)
        z.backward(torch.full_like(z, 1e-4))
        optimizer.step()

    return run


def whole(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    common = [f"trainer.accelerator={device.type}", f"trainer.precision={precision}", FEW_SAVES]
    for depth, size, batch in sizes.encoders:
        data = ["data=photos"] if size <= 32 else ["data=folder", JPEGS, "data.num_workers=14"]
        if device.type == "cpu" and size > 32:
            data[-1] = "data.num_workers=0"
        words = [f"experiment={'cifar10' if size <= 32 else 'imagenet'}", f"model=resnet{depth}", *data, *common]
        words += [f"data.batch_size={batch}", f"views.size={size}"]
        row = measure_step(f"resnet{depth}/{size}", words, chunks=sizes.chunks, steps=sizes.steps)
        yield {
            **row,
            "task": "whole step",
            "what": precision,
            "model": f"resnet{depth}",
            "images_per_second": row["whole_images_per_second"],
        }


def lightlys_loop(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Its transform, collation, head and loss around torchvision's ResNet, as its documentation has it."""
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

    for depth, size, batch in sizes.encoders:
        encoder = getattr(torchvision.models, f"resnet{depth}")()
        width = encoder.fc.in_features
        encoder.fc = nn.Identity()
        network = nn.Sequential(encoder, SimCLRProjectionHead(width, width, WIDTH)).to(device)
        optimizer, loss = torch.optim.SGD(network.parameters(), lr=0.06), NTXentLoss()
        workers = 14 if device.type == "cuda" else 0
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
        yield {
            **rate("lightly's loop", "bf16" if workers else "float32", size, batch, took, None),
            "model": f"resnet{depth}",
        }


SECTIONS = (losses, both_views, bare, whole, lightlys_loop)


def rate(task: str, what: str, size: int, batch: int, took: float, peak: float | None) -> Row:
    per_second = round(batch / took, 1)
    row = {"task": task, "what": what, "size": size, "batch": batch, "ms": 1e3 * took}
    return {**row, "images_per_second": per_second, "peak_mb": peak}


def loss_share(rows: list[Row]) -> float | None:
    """The loss's part of a ResNet-50 step at N 4096, the step's time scaled from its batch."""
    loss = [r["ms"] for r in rows if r["task"] == "loss" and r["what"] == "ours" and r["batch"] == 4096]
    steps = [r["ms"] * 4096 / r["batch"] for r in rows if r["task"] == "bare step" and r["model"] == "resnet50"]
    return loss[0] / min(steps) if loss and steps else None


def table(rows: list[Row]) -> str:
    head = ("task", "model", "size", "batch", "what", "ms", "images/s", "peak MB", "efficiency")
    keys = ("task", "model", "size", "batch", "what", "ms", "images_per_second", "peak_mb", "efficiency")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = (row.get(key) for key in keys)
        shown = ("" if x is None else f"{x:,.3g}" if isinstance(x, float) and x < 100 else x for x in cells)
        lines.append("| " + " | ".join(f"{x:,.0f}" if isinstance(x, float) else str(x) for x in shown) + " |")
    return "\n".join(lines)


def surroundings(device: torch.device, quick: bool) -> dict[str, Any]:
    return {
        **machine("torch", "torchvision", "lightning", "lightly"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "quick": quick,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only shows that the script works")
    parser.add_argument("--seconds", type=float, default=540, help="no section is started after so many")
    parser.add_argument("--out", type=Path, help="gpu.json beside this script; with --quick none")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is found here; --device cpu --quick tries the script", file=sys.stderr)
        return 1
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    quiet_libraries()
    sizes, start, rows = QUICK if options.quick else Sizes(), time.monotonic(), []
    for section in SECTIONS:
        if time.monotonic() - start > options.seconds:
            print(f"{section.__name__} left out: the time is over", file=sys.stderr)
            continue
        try:
            rows += section(sizes, device)
        except Exception as error:
            print(f"{section.__name__} left out: {type(error).__name__}: {error}", file=sys.stderr)
    print(table(rows))
    share = loss_share(rows)
    if share is not None:
        print(f"loss at N 4096: {share:.2%} of a ResNet-50 step")
    out = options.out or (None if options.quick else Path(__file__).with_suffix(".json"))
    if out:
        found = {**surroundings(device, options.quick), "loss_share": share, "rows": rows}
        out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
