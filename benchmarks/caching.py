"""Time and memory of gradient caching in ever smaller micro-batches, compared with the plain step of the same batch.

    python benchmarks/caching.py                # ResNet-10 of a quarter's width at 32 pixels on the CPU; minutes
    python benchmarks/caching.py --quick        # a smoke run

Every row is the same step of the same network on the same batch: forward, NT-Xent of the whole batch, backward. The
plain step and all micro-batches are timed once a turn; `times_plain` is the median over the turns of the ratio of both
times. Memory is the allocator's peak on a GPU, and on the CPU the most bytes that autograd holds for the backward pass
at any moment. The goal is at most 1.4 times the plain step's time. With CUDA, ResNet-18 at 32 pixels and ResNet-50 at
224 pixels follow.
"""

from __future__ import annotations

import statistics
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from _harness import Run, alternate, arguments, cuda_peak_bytes, device_name, parse, ratio, seconds, table, write
from simclr_lightning import LARS, NTXent, Projector, Schedule, SimCLR, resnet
from simclr_lightning.preflight.copies import views

# name: device, depth, width, side, batch, micro-batches
TASKS: dict[str, tuple[str, int, float, int, int, tuple[int, ...]]] = {
    "tiny/32": ("cpu", 10, 0.25, 32, 512, (256, 128, 64, 32)),
    "resnet18/32": ("cuda", 18, 1, 32, 1024, (512, 256, 128)),
    "resnet50/224": ("cuda", 50, 1, 224, 256, (128, 64, 32)),
}
COLUMNS = {
    "task": "{task}",
    "device": "{device}",
    "batch": "{batch}",
    "micro-batch": "{micro_batch}",
    "s a step": "{seconds}",
    "times plain": "{times_plain}",
    "peak MB": "{peak_mb}",
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


class Saved:
    """A tensor that autograd holds for the backward pass."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def saved_peak_bytes(run: Run, own: set[int]) -> int:
    """Return the most bytes that autograd holds at once during ``run``, without the storages at the addresses ``own``.

    Several tensors may share a storage. It counts once, for as long as autograd holds one of them.
    """
    users: dict[int, int] = {}
    held, most = 0, 0

    def release(address: int, size: int) -> None:
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
            weakref.finalize(saved, release, address, size)
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved.x):
        run()
    return most


def measure(name: str, *, turns: int, small: bool) -> list[dict[str, Any]]:
    kind, depth, width, side, size, micros = TASKS[name]
    if small:
        size, micros = size // 8, tuple(micro // 8 for micro in micros)
    device = torch.device(kind)
    module = module_of(depth, width, side, size, device)
    batch = dict(zip(("x_a", "x_b"), views(size, side, device), strict=True))
    steps = {micro: partial(step, module, batch, micro) for micro in (None, *micros)}
    took = alternate(steps, turns, partial(seconds, device=device))
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers(), *batch.values())}

    def peak_bytes(run: Run) -> int:
        return cuda_peak_bytes(run, device) if kind == "cuda" else saved_peak_bytes(run, own)

    return [
        {
            "task": name,
            "device": device_name(device),
            "batch": size,
            "micro_batch": micro or size,
            "seconds": round(statistics.median(times), 4),
            "times_plain": round(ratio(times, took[None]), 3),
            "peak_mb": round(peak_bytes(steps[micro]) / 1e6, 1),
            "turns": turns,
        }
        for micro, times in took.items()
    ]


def main() -> None:
    parser = arguments(__file__, __doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), help="default: all that this machine can run")
    parser.add_argument("--turns", type=int, default=9)
    options = parse(parser)
    chosen = options.tasks or [name for name, task in TASKS.items() if task[0] == "cpu" or torch.cuda.is_available()]
    turns = 1 if options.quick else options.turns
    rows = [row for name in chosen for row in measure(name, turns=turns, small=options.quick)]
    print(table(COLUMNS, rows))
    write(options, "torch", rows=rows)


if __name__ == "__main__":
    main()
