"""Gradient caching beside the plain step: time and memory of a large batch in ever smaller micro-batches.

    python benchmarks/caching.py                # ResNet-10 of a quarter's width at 32 pixels on the CPU; minutes
    python benchmarks/caching.py --quick        # a smoke run

Every row is the same step of the same network on the same batch: forward, NT-Xent of the whole batch, backward. The
plain step and each micro-batch are timed in turns, and the median of the ratios of a turn counts. Memory is the
allocator's peak on a GPU; on the CPU, the most bytes that autograd holds for the backward pass at any moment. The goal
is at most 1.4 times the plain step's time. Where CUDA is there, ResNet-18 at 32 pixels and ResNet-50 at 224 follow.
GPU rows: not yet run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from machine import machine, processor
from simclr_lightning import LARS, NTXent, Projector, Schedule, SimCLR, resnet
from simclr_lightning.preflight.copies import now, views

# name: device, depth, width, side, batch, micro-batches
TASKS: dict[str, tuple[str, int, float, int, int, tuple[int, ...]]] = {
    "tiny/32": ("cpu", 10, 0.25, 32, 512, (256, 128, 64, 32)),
    "resnet18/32": ("cuda", 18, 1, 32, 1024, (512, 256, 128)),
    "resnet50/224": ("cuda", 50, 1, 224, 256, (128, 64, 32)),
}


def module_of(depth: int, width: float, side: int, batch: int, device: torch.device) -> SimCLR:
    torch.manual_seed(0)
    encoder = resnet(depth, width, "cifar" if side <= 32 else "imagenet")
    parts = (encoder, Projector(encoder.feature_dim), NTXent(0.2), partial(LARS, lr=0.1), Schedule())
    return SimCLR(*parts, global_batch_size=batch).to(device, memory_format=torch.channels_last)


def step(module: SimCLR, batch: dict[str, Tensor], micro: int | None) -> None:
    module.micro_batch_size = micro
    module.zero_grad(set_to_none=True)
    device = batch["x_a"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = module.training_step(batch, 0)["loss"]
    loss.backward()


def seconds(module: SimCLR, batch: dict[str, Tensor], micro: int | None) -> float:
    start = now(batch["x_a"].device)
    step(module, batch, micro)
    return now(batch["x_a"].device) - start


def peak(module: SimCLR, batch: dict[str, Tensor], micro: int | None) -> int:
    """Bytes of a step beyond weights, gradients and the batch itself."""
    device = batch["x_a"].device
    if device.type == "cuda":
        step(module, batch, micro)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step(module, batch, micro)
        return torch.cuda.max_memory_allocated(device) - before
    return saved_peak(module, batch, micro)


class Saved:
    """A tensor that autograd keeps; storages are counted once, as long as one of their tensors is kept."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def saved_peak(module: SimCLR, batch: dict[str, Tensor], micro: int | None) -> int:
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers(), *batch.values())}
    users: dict[int, int] = {}
    held, most = 0, 0

    def let_go(address: int, size: int) -> None:
        nonlocal held
        users[address] -= 1
        held -= size if users[address] == 0 else 0

    def pack(x: Tensor) -> Saved:
        nonlocal held, most
        saved, storage = Saved(x.detach()), x.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in own:
            held += size if users.get(address, 0) == 0 else 0
            users[address] = users.get(address, 0) + 1
            most = max(most, held)
            weakref.finalize(saved, let_go, address, size)
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved.x):
        step(module, batch, micro)
    return most


def measure(name: str, *, turns: int, small: bool) -> list[dict[str, Any]]:
    kind, depth, width, side, size, micros = TASKS[name]
    if small:
        size, micros = size // 8, tuple(micro // 8 for micro in micros)
    device = torch.device(kind)
    module = module_of(depth, width, side, size, device)
    x_a, x_b = views(size, side, device)
    batch = {"x_a": x_a, "x_b": x_b}
    took: dict[int | None, list[float]] = {micro: [] for micro in (None, *micros)}
    for turn in range(turns + 1):  # the first warms up
        for micro, times in took.items():
            one = seconds(module, batch, micro)
            if turn:
                times.append(one)
    plain = took[None]
    return [
        {
            "task": name,
            "device": torch.cuda.get_device_name(device) if kind == "cuda" else processor(),
            "batch": size,
            "micro_batch": micro or size,
            "seconds": round(statistics.median(times), 4),
            "times_plain": round(statistics.median(t / p for t, p in zip(times, plain, strict=True)), 3),
            "peak_mb": round(peak(module, batch, micro) / 1e6, 1),
            "turns": turns,
        }
        for micro, times in took.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| task | device | batch | micro-batch | s a step | times plain | peak MB |", "|---" * 7 + "|"]
    for row in rows:
        cells = [row[key] for key in ("task", "device", "batch", "micro_batch", "seconds", "times_plain", "peak_mb")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="all that this machine can run")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a smoke run: nothing of it is a figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = options.tasks or [name for name, task in TASKS.items() if task[0] == "cpu" or torch.cuda.is_available()]
    turns = 1 if options.quick else options.turns
    rows = [row for name in chosen for row in measure(name, turns=turns, small=options.quick)]
    print(table(rows))
    head = {**machine("torch"), "threads": options.threads}
    options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
