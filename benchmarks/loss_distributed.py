"""Bytes that each rank sends in one step of NT-Xent: counted at the process group, and computed for larger groups.

    python benchmarks/loss_distributed.py                     # counts with 2 and 4 gloo processes; seconds
    python benchmarks/loss_distributed.py --pairs 64          # a smaller run

What is counted is what every collective is handed; what is sent follows from the ring algorithms that gloo and NCCL
use for large messages: an all-gather of S bytes a rank sends (W - 1) S, an all-reduce of S bytes 2 (W - 1) / W S, a
reduce-scatter of S bytes (W - 1) / W S. Beside this package stand the two usual ways to let the gradient of a gather
through: an all-reduce of the whole gathered gradient (lightly, solo-learn), and a reduce-scatter of it.
"""

import argparse
import datetime
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

from simclr_lightning import nt_xent

WIDTH = 128
COMPUTED = (8, 16, 32, 64, 128, 256, 512, 1024)
# What a rank sends of the bytes S that it hands over, by the method of the process group: (S, W) -> bytes.
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
    """The dense loss of this rank's rows against the gathered rows of all."""
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
    """The collectives that reach the process group meanwhile, with the bytes this rank hands to each."""
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
    """What ``work`` would count in a group of ``world``: N pairs in all, float32."""
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
    return sum(RING[name](size, world) for name, size in calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4096, help="N, over all ranks")
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4], help="process counts to run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = []
    for world in [*options.worlds, *COMPUTED]:
        calls: Any = computed(world, options.pairs)
        if world in options.worlds:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(work, args=(world, options.pairs, folder), nprocs=world)
                counts = json.loads(Path(folder, "result.json").read_text())
            expected = json.loads(json.dumps(calls))
            assert counts == expected, f"the computed column is wrong: {counts} against {expected}"
            calls = counts
        for method, passes in calls.items():
            row = {name: sent(part, world) for name, part in passes.items()}
            rows.append({"world": world, "counted": world in options.worlds, "method": method, **row})
    print(f"MB sent per rank and step (forward + backward), N {options.pairs}, D {WIDTH}, float32")
    print("| W | " + " | ".join(METHODS) + " |\n" + "|---" * (len(METHODS) + 1) + "|")
    for world in dict.fromkeys(row["world"] for row in rows):
        here = [row for row in rows if row["world"] == world]
        cells = [f"{r['forward'] / 1e6:.2f} + {r['backward'] / 1e6:.2f}" for r in here]
        print(f"| {world}{' (counted)' if here[0]['counted'] else ''} | " + " | ".join(cells) + " |")
    head = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "pairs": options.pairs,
        "width": WIDTH,
    }
    options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
