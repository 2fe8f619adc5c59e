"""The cost of an evaluation: feature extraction compared with the bare forward pass, and the sweep over 45 l2.

    python benchmarks/evaluation.py            # three minutes on two cores
    python benchmarks/evaluation.py --quick    # a smoke run

Extraction is `extract` over `ViewsDataModule.eval_batches` of uint8 images in memory, as `simclr evaluate` calls them.
The bare forward pass is the encoder in evaluation mode under `inference_mode` on ready batches of the same size. Both
are timed once a turn; `efficiency` is the median over the turns of the ratio. The sweep fits 50,000 x 512 features of
10 classes at all 45 l2 of the paper's protocol and picks the best on 10,000 others. scikit-learn's solver then fits the
middle l2 alone.
"""

from __future__ import annotations

import statistics
import warnings
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from _harness import alternate, arguments, parse, ratio, seconds, table, write
from simclr_lightning import ViewsDataModule, resnet
from simclr_lightning.data import Splits, TensorImages
from simclr_lightning.evaluation import L2_GRID, choose_l2, extract

ENCODERS = {"ResNet-10, width 1/4 (the default run's)": (10, 0.25, 4096), "ResNet-18": (18, 1.0, 1024)}
COLUMNS = {
    "encoder at 32 px": "{encoder}",
    "extract, images/s": "{extract_images_per_second}",
    "bare, images/s": "{bare_images_per_second}",
    "efficiency": "{efficiency}",
}


def forward(encoder: nn.Module, batches: list[Tensor]) -> None:
    with torch.inference_mode():
        for batch in batches:
            encoder(batch)


def extraction(name: str, depth: int, width: float, images: int, turns: int) -> dict[str, Any]:
    """Return the images/s of extraction and bare forward pass, and their ratio."""
    torch.manual_seed(0)
    encoder = resnet(depth, width, "cifar").to(memory_format=torch.channels_last).eval()
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    splits = Splits(TensorImages(pixels, torch.zeros(images).long()), None, torch.arange(0), ("one",), "benchmark")
    data = ViewsDataModule(lambda path: splits, batch_size=256, recipe="simclr_cifar")
    rows = torch.arange(images)
    ready = list(data.eval_batches(splits.train, rows))
    runs = {
        "bare": lambda: forward(encoder, ready),
        "extract": lambda: extract(encoder, data.eval_batches(splits.train, rows)),
    }
    took = alternate(runs, turns)
    return {
        "encoder": name,
        "images": images,
        **{f"{run}_images_per_second": round(images / statistics.median(times)) for run, times in took.items()},
        "efficiency": round(ratio(took["bare"], took["extract"]), 3),
    }


def features(n: int, width: int) -> tuple[Tensor, Tensor]:
    """Return features (n, width) like a network's (few strong directions, overlapping classes) and labels (n,)."""
    draw = torch.Generator().manual_seed(0)
    y_n = torch.randint(0, 10, (n,), generator=draw)
    centre = torch.randn(10, width, generator=draw)[y_n]
    scale = torch.arange(1, width + 1).pow(-0.5)
    return (centre * 0.6 + torch.randn(n, width, generator=draw)).mul_(scale).clamp_(min=-1).add_(1), y_n


def sweep(n: int, width: int) -> dict[str, Any]:
    """Return the seconds of the sweep over all l2 and of scikit-learn's fit with one."""
    h, y = features(n + n // 5, width)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        took = seconds(lambda: choose_l2(h[:n], y[:n], h[n:], y[n:], classes=10))
    l2 = L2_GRID[len(L2_GRID) // 2]
    one = LogisticRegression(C=1 / (n * l2), tol=1e-4, max_iter=1000)
    theirs = seconds(lambda: one.fit(h[:n].numpy(), y[:n].numpy()))
    return {
        "features": [n, width],
        "l2s": len(L2_GRID),
        "seconds": round(took, 1),
        "fits_stopped_early": len(caught),
        "sklearn_one_fit_seconds": round(theirs, 1),
    }


def main() -> None:
    parser = arguments(__file__, __doc__)
    parser.add_argument("--turns", type=int, default=7)
    options = parse(parser)
    turns, part = (1, 16) if options.quick else (options.turns, 1)
    rows = [extraction(name, d, w, images // part, turns) for name, (d, w, images) in ENCODERS.items()]
    print(table(COLUMNS, rows))
    swept = sweep(50_000 // part, 512 // part)
    print("{l2s} l2 on {features} features: {seconds} s; one of them by scikit-learn: ".format_map(swept), end="")
    print(f"{swept['sklearn_one_fit_seconds']} s")
    write(options, "torch", "scikit-learn", extraction=rows, sweep=swept)


if __name__ == "__main__":
    main()
