"""What judging costs: features beside the bare forward pass, and the probe's sweep over 45 regularisations.

    python benchmarks/evaluation.py            # three minutes on two cores; prints a table, writes evaluation.json
    python benchmarks/evaluation.py --quick    # a smoke run: nothing of it is a figure

Extraction is `extract` over `ViewsDataModule.eval_batches` of uint8 images in memory, as `simclr evaluate` calls them;
the bare forward pass is the encoder in evaluation mode under `inference_mode` on ready batches of the same size. The
two take turns, and the figure is the median of the turns' ratios. The sweep fits 50,000 x 512 features of 10 classes
(10,000 held out choose) at all 45 l2 of the paper's protocol; scikit-learn's solver fits the middle one beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from machine import machine
from simclr_lightning import ViewsDataModule, resnet
from simclr_lightning.data import Splits, TensorImages
from simclr_lightning.evaluation import L2_GRID, choose_l2, extract

ENCODERS = {"ResNet-10, width 1/4 (the default run's)": (10, 0.25, 4096), "ResNet-18": (18, 1.0, 1024)}


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def bare(encoder: nn.Module, batches: list[Tensor]) -> None:
    with torch.inference_mode():
        for batch in batches:
            encoder(batch)


def extraction(name: str, depth: int, width: float, images: int, turns: int) -> dict[str, Any]:
    """Images/s of both, and the ratio."""
    torch.manual_seed(0)
    encoder = resnet(depth, width, "cifar").to(memory_format=torch.channels_last).eval()
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    splits = Splits(TensorImages(pixels, torch.zeros(images).long()), None, torch.arange(0), ("one",), "benchmark")
    data = ViewsDataModule(lambda path: splits, batch_size=256, recipe="simclr_cifar")
    rows = torch.arange(images)
    ready = list(data.eval_batches(splits.train, rows))
    pairs = []
    for _ in range(turns + 1):  # the first one warms up
        alone = seconds(lambda: bare(encoder, ready))
        pairs.append((alone, seconds(lambda: extract(encoder, data.eval_batches(splits.train, rows)))))
    alone, whole = (statistics.median(times) for times in zip(*pairs[1:], strict=True))
    return {
        "encoder": name,
        "images": images,
        "bare_images_per_second": round(images / alone),
        "extract_images_per_second": round(images / whole),
        "efficiency": round(statistics.median(a / w for a, w in pairs[1:]), 3),
    }


def features(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Features like a network's: a few strong directions and a long tail, classes apart but overlapping."""
    made = torch.Generator().manual_seed(0)
    y_n = torch.randint(0, 10, (n,), generator=made)
    centre = torch.randn(10, width, generator=made)[y_n]
    scale = torch.arange(1, width + 1).pow(-0.5)
    return (centre * 0.6 + torch.randn(n, width, generator=made)).mul_(scale).clamp_(min=-1).add_(1), y_n


def sweep(n: int, width: int) -> dict[str, Any]:
    """Seconds of the whole sweep, and of scikit-learn's one fit."""
    h, y = features(n + n // 5, width)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        took = seconds(lambda: choose_l2(h[:n], y[:n], h[n:], y[n:], classes=10))
    l2 = L2_GRID[len(L2_GRID) // 2]
    one = LogisticRegression(C=1 / (n * l2), tol=1e-4, max_iter=1000)
    theirs = seconds(lambda: one.fit(h[:n].numpy(), y[:n].numpy()))
    return {
        "features": [n, width],
        "l2s": len(L2_GRID),
        "seconds": round(took, 1),
        "fits_stopped_early": len(said),
        "sklearn_one_fit_seconds": round(theirs, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a smoke run: nothing of it is a figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns, part = (1, 16) if options.quick else (options.turns, 1)
    rows = [extraction(name, d, w, images // part, turns) for name, (d, w, images) in ENCODERS.items()]
    print("| encoder at 32 px | extract, images/s | bare, images/s | efficiency |\n|---|---|---|---|")
    for row in rows:
        cells = (row["encoder"], row["extract_images_per_second"], row["bare_images_per_second"], row["efficiency"])
        print("| " + " | ".join(map(str, cells)) + " |")
    swept = sweep(50_000 // part, 512 // part)
    print(f"{swept['l2s']} l2 on {swept['features']} features: {swept['seconds']} s; ", end="")
    print(f"scikit-learn, one of them: {swept['sklearn_one_fit_seconds']} s")
    head = {**machine("torch", "scikit-learn"), "threads": options.threads}
    if not options.quick:
        options.out.write_text(json.dumps({**head, "extraction": rows, "sweep": swept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
