"""Bytes that each rank sends in one step of NT-Xent: counted at the process group, and computed for larger groups.

    python benchmarks/loss_distributed.py             # counts with 2 and 4 gloo processes; seconds
    python benchmarks/loss_distributed.py --quick     # N 1024, 2 processes

The script counts the bytes that a rank passes to every collective. The bytes that the rank sends follow from the ring
algorithms that gloo and NCCL use for large messages: (W - 1) S for an all-gather of S bytes a rank, 2 (W - 1) / W S for
an all-reduce of S bytes, (W - 1) / W S for a reduce-scatter of S bytes. Two usual ways to carry the gradient through a
gather are counted too: an all-reduce of the whole gathered gradient (lightly, solo-learn), and its reduce-scatter.
The computed bytes hold for more than 64 pairs, whose sums are float32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from _harness import arguments, markdown, parse, write
from simclr_lightning import nt_xent

WIDTH = 128
COMPUTED = (8, 16, 32, 64, 128, 256, 512, 1024)
# Bytes that a rank sends for the S bytes that it passes to a method of the process group: (S, W) -> bytes.
RING: dict[str, Callable[[float, int], float]] = {
    "allgather": lambda size, world: (world - 1) * size,
    "allreduce": lambda size, world: 2 * (world - 1) / world * size,
    "reduce_scatter": lambda size, world: (world - 1) / world * size,
}


class GatherAndReduce(torch.autograd.Function):
    """A gather whose backward sums the gathered gradients of all ranks, by all-reduce or by reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scatter: bool) -> Tensor:
        ctx.scatter = scatter
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, z.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        if not ctx.scatter:
            dist.all_reduce(grad)
            return grad[dist.get_rank()], None
        own = torch.empty_like(grad[0])
        dist.reduce_scatter(own, list(grad.unbind(0)))
        return own, None


def gathered(z_a: Tensor, z_b: Tensor, scatter: bool) -> Tensor:
    """Return the dense loss of this rank's rows against the gathered rows of all ranks."""
    z = torch.nn.functional.normalize(torch.stack([z_a, z_b]), dim=2)
    everyone = GatherAndReduce.apply(z, scatter).transpose(0, 1).flatten(1, 2)
    total, here = everyone.shape[1], dist.get_rank() * len(z_a)
    own = torch.cat([torch.arange(len(z_a)) + here, torch.arange(len(z_a)) + here + total])
    logits = z.flatten(0, 1) @ everyone.flatten(0, 1).T / 0.1
    logits = logits.scatter(1, own.unsqueeze(1), -torch.inf)
    return torch.nn.functional.cross_entropy(logits, (own + total) % (2 * total))


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": lambda z_a, z_b: nt_xent(z_a, z_b, 0.1).loss,
    "gather, all-reduce of gradients (lightly, solo-learn)": lambda z_a, z_b: gathered(z_a, z_b, False),
    "gather, reduce-scatter of gradients": lambda z_a, z_b: gathered(z_a, z_b, True),
}


@contextmanager
def counted() -> Iterator[list[tuple[str, int]]]:
    """Yield a list to which every collective adds its name and the bytes that this rank passes to it."""
    sent: list[tuple[str, int]] = []
    originals = {
        name: method
        for name, method in vars(dist.ProcessGroup).items()
        if any(word in name for word in ("all", "reduce", "broadcast", "gather", "scatter", "send", "recv"))
    }

    def watch(name: str, original: Any) -> Any:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            own = next(x for x in reversed(args) if isinstance(x, list))
            flat = own[0] if own and isinstance(own[0], list) else own
            sent.append((name, sum(x.nbytes for x in flat)))
            return original.__get__(group)(*args, **kwargs)

        return call

    for name, original in originals.items():
        setattr(dist.ProcessGroup, name, watch(name, original))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist.ProcessGroup, name, original)


def work(rank: int, world: int, pairs: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    draw = torch.Generator().manual_seed(rank)
    z_a, z_b = (torch.randn(pairs // world, WIDTH, generator=draw).requires_grad_() for _ in range(2))
    result = {}
    for name, method in METHODS.items():
        with counted() as forward:
            loss = method(z_a, z_b)
        with counted() as backward:
            loss.backward()
        result[name] = {"forward": forward, "backward": backward}
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def computed(world: int, pairs: int) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """Return what ``work`` would count in a group of ``world`` ranks with N pairs in all, float32."""
    z, own = 2 * pairs * WIDTH * 4, 2 * pairs * WIDTH * 4 / world
    names = list(METHODS)
    return {
        names[0]: {
            "forward": [("allgather", 8), ("allgather", own), ("allgather", 2 * pairs * 4 / world)],
            "backward": [],
        },
        names[1]: {"forward": [("allgather", own)], "backward": [("allreduce", z)]},
        names[2]: {"forward": [("allgather", own)], "backward": [("reduce_scatter", z)]},
    }


def sent(calls: list[tuple[str, float]], world: int) -> float:
    """Return the bytes that a rank sends for these collectives."""
    return sum(RING[name](size, world) for name, size in calls)


def counted_by_ranks(world: int, pairs: int) -> Any:
    """Start ``world`` processes and return what rank 0 counted."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(world, pairs, folder), nprocs=world)
        return json.loads(Path(folder, "result.json").read_text())


def table(rows: list[dict[str, Any]]) -> str:
    lines: dict[str, list[str]] = {}
    for row in rows:
        cell = "{:.2f} + {:.2f}".format(row["forward"] / 1e6, row["backward"] / 1e6)
        lines.setdefault(f"{row['world']}{' (counted)' if row['counted'] else ''}", []).append(cell)
    return markdown(["W", *METHODS], ([world, *cells] for world, cells in lines.items()))


def main() -> None:
    parser = arguments(__file__, __doc__, threads=1)
    parser.add_argument("--pairs", type=int, default=4096, help="N, over all ranks")
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4], help="process counts to run")
    options = parse(parser)
    pairs, worlds = (1024, [2]) if options.quick else (options.pairs, options.worlds)
    rows = []
    for world in [*worlds, *COMPUTED]:
        calls: Any = computed(world, pairs)
        if world in worlds:
            counts = counted_by_ranks(world, pairs)
            assert counts == json.loads(json.dumps(calls)), f"`computed` is wrong: {counts} was counted, not {calls}"
            calls = counts
        for method, passes in calls.items():
            row = {name: sent(part, world) for name, part in passes.items()}
            rows.append({"world": world, "counted": world in worlds, "method": method, **row})
    print(f"MB sent per rank and step (forward + backward), N {pairs}, D {WIDTH}, float32")
    print(table(rows))
    write(options, "torch", pairs=pairs, width=WIDTH, rows=rows)


if __name__ == "__main__":
    main()
