"""Time and peak memory of NT-Xent, forward and backward, compared with rivals and with the bare matrix products.

    python benchmarks/loss.py                                  # N 256, 1024, 4096, 8192; a few minutes on one core
    python benchmarks/loss.py --quick                          # N 64 and 128, one repeat
    python benchmarks/loss.py --picture docs/ntxent.png        # also draws cost against N

Rivals: `pip install lightly pytorch-metric-learning`; a missing one is left out. Every method runs in a fresh process,
once with the C library's default allocator and once with one that does not return its pages (`tuned`), since page
faults of large allocations take much of the dense methods' time. Peak memory is the most that tensors hold at once
beyond the inputs, added up from the single allocations. The floor is the time of the matrix products alone: 3 M^2 D
multiplications and additions where all blocks stay in memory, 4 M^2 D where they are computed again (M = 2N), in blocks
as large as the loss's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import profile

from _harness import Run, alternate, arguments, markdown, parse, write

TEMPERATURE = 0.1
WIDTH = 128
MATRIX_LIMIT = {"pytorch-metric-learning": 256}  # 34 GB at N 1024
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}

Loss = Callable[[Tensor, Tensor], Tensor]


def ours() -> Loss:
    from simclr_lightning import nt_xent

    return lambda z_a, z_b: nt_xent(z_a, z_b, TEMPERATURE).loss


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def metric_learning() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))


def exponentials_and_masks() -> Loss:
    """Compute the formula as solo-learn does: exp without a maximum, two masks over the whole matrix, sums."""

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        z = torch.nn.functional.normalize(torch.cat([z_a, z_b]), dim=1)
        similarity = torch.exp(torch.einsum("id,jd->ij", z, z) / TEMPERATURE)
        pair = torch.arange(len(z_a)).repeat(2)
        same = pair.unsqueeze(1) == pair
        itself = torch.eye(len(z), dtype=torch.bool)
        positive = (similarity * (same & ~itself)).sum(1)
        negative = (similarity * ~same).sum(1)
        return -torch.log(positive / (positive + negative)).mean()

    return loss


def dense() -> Loss:
    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        z = torch.nn.functional.normalize(torch.cat([z_a, z_b]), dim=1)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(z)).roll(len(z_a)))

    return loss


def products(count: int) -> Loss:
    """Do ``count`` M^2 D multiplications and additions over the upper triangle, on preallocated blocks."""

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        side = min(len(z_a), 384)
        a, b = z_a.detach()[:side], z_b.detach()[:side]
        block, sums = torch.empty(side, side), torch.zeros(side, z_a.shape[1])
        # A triangle of M^2 / 2 entries. Two products are the gradient's, the others similarities; each is 2 D an entry.
        for _ in range(round((2 * len(z_a)) ** 2 / 2 / side**2)):
            for _ in range(count - 2):
                torch.mm(a, b.T, out=block)
            torch.mm(block, b, out=sums)
            torch.mm(block.T, a, out=sums)
        return (z_a.sum() + z_b.sum()) * 0

    return loss


METHODS: dict[str, Callable[[], Loss]] = {
    "ours": ours,
    "lightly": lightly,
    "exp and masks (solo-learn's formula)": exponentials_and_masks,
    "pytorch-metric-learning": metric_learning,
    "dense cross-entropy": dense,
    "floor 3 M^2 D": lambda: products(3),
    "floor 4 M^2 D": lambda: products(4),
}


def peak_bytes(run: Run) -> int:
    """Return the most bytes that tensors hold at once during ``run``, from the profiler's allocations."""
    with profile(profile_memory=True) as profiler:
        run()
    held = peak = 0
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(method: str, pairs: int, repeats: int) -> dict[str, object]:
    """Return median and least milliseconds over ``repeats`` runs after a warm-up, and peak megabytes."""
    loss = METHODS[method]()
    draw = torch.Generator().manual_seed(0)
    z_a, z_b = (torch.randn(pairs, WIDTH, generator=draw).requires_grad_() for _ in range(2))

    def run() -> None:
        z_a.grad = z_b.grad = None
        loss(z_a, z_b).backward()

    times = alternate({method: run}, repeats)[method]
    z_a.grad = z_b.grad = None
    return {"ms": 1e3 * statistics.median(times), "least_ms": 1e3 * min(times), "peak_mb": peak_bytes(run) / 1e6}


def in_process(method: str, pairs: list[int], repeats: int, threads: int, tuned: bool) -> list[dict[str, Any]]:
    """Run ``measure`` for every N in one fresh process; return an empty list where the rival is not installed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(TUNED if tuned else {})}
    command = [sys.executable, __file__, "--method", method, "--repeats", str(repeats), "--pairs", *map(str, pairs)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{method} left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return []
    return json.loads(done.stdout.splitlines()[-1])


def in_processes(pairs: list[int], repeats: int, threads: int) -> list[dict[str, Any]]:
    rows = []
    for method in METHODS:
        within = [n for n in pairs if n <= MATRIX_LIMIT.get(method, n)]
        for allocator in ("default", "tuned") if within else ():
            found = in_process(method, within, repeats, threads, tuned=allocator == "tuned")
            rows += [{"method": method, "allocator": allocator, **row} for row in found]
            if not found:
                break
    return rows


def table(rows: list[dict[str, Any]], pairs: list[int]) -> str:
    """Return a table of milliseconds (milliseconds with the tuned allocator) / peak megabytes."""
    found = {(row["method"], row["pairs"], row["allocator"]): row for row in rows}

    def cell(method: str, n: int) -> str:
        if (method, n, "tuned") not in found:
            return ""
        default, tuned = (found[method, n, allocator] for allocator in ("default", "tuned"))
        return f"{default['ms']:.1f} ({tuned['ms']:.1f}) / {default['peak_mb']:.1f}"

    head = ["ms (tuned) / MB", *(f"N {n}" for n in pairs)]
    return markdown(head, ([method, *(cell(method, n) for n in pairs)] for method in METHODS))


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against N, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    pairs = sorted({r["pairs"] for r in rows})
    for axes, key, label in zip(figure.subplots(1, 2), ("ms", "peak_mb"), ("time, ms", "peak memory, MB"), strict=True):
        for method, marker in zip(METHODS, "osD^vx+", strict=True):
            points = [r for r in rows if r["method"] == method and r["allocator"] == "default"]
            if points and not (key == "peak_mb" and method.startswith("floor")):
                values = [r[key] for r in points]
                axes.loglog([r["pairs"] for r in points], values, marker=marker, label=method)
        axes.set(xlabel="pairs N", title=label)
        axes.set_xticks(pairs, list(map(str, pairs)))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle("NT-Xent, forward and backward, one CPU core, float32, D = 128")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__file__, __doc__, threads=1)
    parser.add_argument("--pairs", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="also draw cost against N into this file")
    parser.add_argument("--method", choices=list(METHODS), help="measure this method in this process and print JSON")
    options = parse(parser)
    if options.method:
        print(json.dumps([{"pairs": n, **measure(options.method, n, options.repeats)} for n in options.pairs]))
        return
    pairs, repeats = ([64, 128], 1) if options.quick else (options.pairs, options.repeats)
    rows = in_processes(pairs, repeats, options.threads)
    print(table(rows, pairs))
    write(options, "torch", "lightly", "pytorch-metric-learning", rows=rows)
    if options.picture:
        picture(rows, options.picture)


if __name__ == "__main__":
    main()
