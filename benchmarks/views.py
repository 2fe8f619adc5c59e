"""CPU seconds of two views per image on one core: this package, torchvision, lightly, kornia and albumentations.

    python benchmarks/views.py                # every installed rival; about five minutes on a quiet core
    python benchmarks/views.py --quick        # 32 images, 2 photographs, one round

One process with one thread runs all candidates once a round, so that a busy moment hits all of them; the median of the
CPU seconds over the rounds counts. At 32 pixels: decoded images in, two float views out, the CIFAR recipe (strength
0.5, no blur). At 224: 500 x 375 JPEGs (scikit-image's photographs at quality 90) in, decoding included, the ImageNet
recipe. Every rival has the same resize filter, bicubic and antialiased where the rival can. Next to the speed the table
has the errors, in levels of 255: of a candidate's resize against Pillow's, and of its hue shift against the exact one
through HSV. The last column is the unit for which a candidate draws the order of the jitter's operations and their
strengths.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from _harness import alternate, arguments, cpu_seconds, left_out, parse, table, write
from _images import jpegs, patches
from _views import (
    TURNS,
    Candidate,
    Images,
    albumentations,
    kornia,
    levels,
    lightly,
    ours,
    to_pil,
    torchvision_v1,
    torchvision_v2,
)

PACKAGES = ("torch", "torchvision", "pillow", "lightly", "kornia", "albumentations", "opencv-python-headless")
COLUMNS = {
    "task": "{task}",
    "candidate": "{name}",
    "µs an image": "{us_per_image:.0f}",
    "images/s": "{images_per_second:.0f}",
    "resize: max, mean": "{resize_max:.2f}, {resize_mean:.3f}",
    "hue: mean": "{hue_mean:.3f}",
    "drawn for each": "{drawn_for}",
}


@dataclass
class Row:
    """A row of the table."""

    task: str
    name: str
    us_per_image: float
    images_per_second: float
    resize_max: float
    resize_mean: float
    hue_mean: float
    drawn_for: str


def fidelity(candidate: Candidate) -> tuple[float, float, float]:
    """Return the resize's largest and mean error and the hue's mean error, in levels."""
    resize_off = []
    # A reduction, where antialiasing shows, and an enlargement; one pass at a time, as Pillow's order varies.
    for image, size in ((jpeg_pixels(), 120), (patches(1)[0], 48)):
        across = to_pil(image).resize((size, image.shape[1]), Image.Resampling.BICUBIC)
        want = levels(across.resize((size, size), Image.Resampling.BICUBIC))
        resize_off.append((candidate.resize(image, size) - want).abs().flatten())
    image = jpeg_pixels()[:, :300, :300].contiguous()
    want = TF.adjust_hue(image.double() / 255, TURNS) * 255
    hue_off = (candidate.hue(image) - want).abs().mean().item()
    off = torch.cat(resize_off)
    return off.max().item(), off.mean().item(), hue_off


def jpeg_pixels() -> Tensor:
    return decode_jpeg(jpegs(1)[0]).contiguous()


def measure(task: str, candidates: list[Candidate], images: Images, rounds: int) -> list[Row]:
    runs = {c.name: partial(c.views, c.prepare(images)) for c in candidates}
    took = alternate(runs, rounds, cpu_seconds)
    rows = []
    for c in candidates:
        each = median(took[c.name]) / len(images)
        off = fidelity(c) if c.drawn_for != "-" else (0.0, 0.0, 0.0)  # decoding changes nothing
        rows.append(Row(task, c.name, each * 1e6, 1 / each, *off, c.drawn_for))
    return sorted(rows, key=lambda row: row.us_per_image)


def installed(size: int) -> list[Candidate]:
    found = [*ours(size), *torchvision_v1(size), *torchvision_v2(size)]
    for rival in (lightly, kornia, albumentations):
        try:
            found += rival(size)
        except ImportError as error:
            left_out(rival.__name__, error)
    return found


def main() -> None:
    parser = arguments(__file__, __doc__, threads=1)
    parser.add_argument("--images", type=int, default=512, help="images of 32 pixels in a batch")
    parser.add_argument("--photographs", type=int, default=16, help="JPEGs of 500 x 375")
    parser.add_argument("--rounds", type=int, default=9)
    options = parse(parser)
    if options.quick:
        options.images, options.photographs, options.rounds = 32, 2, 1
    warnings.simplefilter("ignore")  # those of the rivals
    with torch.inference_mode():
        rows = measure("32 px", installed(32), patches(options.images), options.rounds)
        rows += measure("224 px from JPEG", installed(224), jpegs(options.photographs), options.rounds)
    found = [asdict(row) for row in rows]
    print(table(COLUMNS, found))
    settings = {"images": options.images, "photographs": options.photographs, "rounds": options.rounds}
    write(options, *PACKAGES, **settings, rows=found)


if __name__ == "__main__":
    main()
