"""NT-Xent forward and backward: time and peak memory against rivals, and against the bare matrix products.

    python benchmarks/loss.py                                  # N 256, 1024, 4096, 8192; a few minutes on one core
    python benchmarks/loss.py --pairs 256 1024 --repeats 5     # a smaller run
    python benchmarks/loss.py --picture docs/ntxent.png        # and the picture of cost against N

Rivals: `pip install lightly pytorch-metric-learning`; one that is missing is left out. Every method runs in a process
of its own, once with the C library's allocator as it comes and once with one that keeps its pages (`tuned`), since
page faults of large allocations are much of the dense methods' time. Peak memory is the most that tensors hold at once
beyond the inputs, counted from the allocations themselves. The floor is the matrix products alone, of 3 M^2 D
multiplications and additions where all blocks are kept and 4 M^2 D where they are computed again (M = 2N), in blocks
as large as the loss's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import profile

from machine import machine
from simclr_lightning import nt_xent

TEMPERATURE = 0.1
WIDTH = 128
MATRIX_LIMIT = {"pytorch-metric-learning": 256}  # 34 GB at N 1024
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}

Loss = Callable[[Tensor, Tensor], Tensor]


def ours() -> Loss:
    return lambda z_a, z_b: nt_xent(z_a, z_b, TEMPERATURE).loss


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def metric_learning() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=TEMPERATURE))


def exponentials_and_masks() -> Loss:
    """The formula in solo-learn's way: exp without a maximum, two masks over the whole matrix, sums."""

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
    """The floor: ``count`` M^2 D multiplications and additions over the upper triangle, on preallocated blocks."""

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        side = min(len(z_a), 384)
        a, b = z_a.detach()[:side], z_b.detach()[:side]
        block, sums = torch.empty(side, side), torch.zeros(side, z_a.shape[1])
        # A triangle of M^2 / 2 entries; two products of the gradient and the rest similarities, 2 D an entry each.
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


def peak_bytes(run: Callable[[], None]) -> int:
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
    """Median and least milliseconds over ``repeats`` runs after a warm-up, and peak megabytes."""
    loss = METHODS[method]()
    draw = torch.Generator().manual_seed(0)
    z_a, z_b = (torch.randn(pairs, WIDTH, generator=draw).requires_grad_() for _ in range(2))

    def run() -> None:
        z_a.grad = z_b.grad = None
        loss(z_a, z_b).backward()

    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    z_a.grad = z_b.grad = None
    return {"ms": statistics.median(times), "least_ms": min(times), "peak_mb": peak_bytes(run) / 1e6}


def in_process(method: str, pairs: list[int], repeats: int, threads: int, tuned: bool) -> list[dict[str, object]]:
    """Run ``measure`` for every N in one fresh process; an empty list where the rival is not installed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(TUNED if tuned else {})}
    command = [sys.executable, __file__, "--method", method, "--repeats", str(repeats), "--pairs", *map(str, pairs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{method} left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return []
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, object]], pairs: list[int]) -> str:
    """Milliseconds (milliseconds with the tuned allocator) / peak megabytes."""
    lines = ["| ms (tuned) / MB | " + " | ".join(f"N {n}" for n in pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for method in METHODS:
        cells = []
        for n in pairs:
            found = {r["allocator"]: r for r in rows if (r["method"], r["pairs"]) == (method, n)}
            cells.append(
                f"{found['default']['ms']:.1f} ({found['tuned']['ms']:.1f}) / {found['default']['peak_mb']:.1f}"
                if len(found) == 2
                else ""
            )
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(rows: list[dict[str, object]], path: Path) -> None:
    """Time and memory against N, both axes logarithmic."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--method", choices=list(METHODS), help="measure this one here and print JSON")
    options = parser.parse_args()
    if options.method:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        print(json.dumps([{"pairs": n, **measure(options.method, n, options.repeats)} for n in options.pairs]))
        return
    rows: list[dict[str, object]] = []
    for method in METHODS:
        for tuned in (False, True):
            within = [n for n in options.pairs if n <= MATRIX_LIMIT.get(method, n)]
            found = in_process(method, within, options.repeats, options.threads, tuned)
            allocator = "tuned" if tuned else "default"
            rows += [{"method": method, "allocator": allocator, **row} for row in found]
            if not found:
                break
    print(table(rows, options.pairs))
    head = {**machine("torch", "lightly", "pytorch-metric-learning"), "threads": options.threads}
    options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    if options.picture:
        picture(rows, options.picture)


if __name__ == "__main__":
    main()
