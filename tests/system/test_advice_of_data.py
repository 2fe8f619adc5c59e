"""What the messages about images and other commands' arguments advise works when it is followed to the letter."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from advice import advised
from conftest import OVERRIDES, small_images
from simclr_lightning.cli import COMMANDS

Program = Callable[..., int]
DATA = [
    ("data=array data.path=null", r"needs a file: (data\.path=)FILE\.npz", "data=array {0}images.npz"),
    ("data=array data.path=pics", r"which (data=\w+) reads", "{0} data.path=pics"),
    ("data=folder", r"data=folder needs (data\.path=)DIR", "data=folder {0}pics"),
    ("data=folder data.path=images.npz", r"(data=array) an .npz", "{0} data.path=images.npz"),
    ("data=folder data.path=packed", r"read it with (\S+)$", "{0} data.path=packed"),
    ("data=packed data.path=pics", r"with (data=folder)$", "{0} data.path=pics"),
    ("data=packed data.path=null", r"IMAGES OUT` wrote: (data\.path=)OUT", "data=packed {0}packed"),
    ("data=photos data.path=pics", r"your own images: (\S+) or", "{0} data.path=pics"),
    ("data=photos +data.dataset.size=65", r"(data\S+)=65: must be from (\d+)", "data=photos +{0}={1}"),
    ("data=imagenet data.path=null", r"val/: (data\.path=)DIR", "data=imagenet {0}good"),
    ("data=imagenet data.path=classes", r"out with (\S+)$", "data=imagenet data.path=classes {0}"),
    ("data=folder data.path=classes", r"out with (\S+)$", "data=folder data.path=classes {0}"),
    (
        "data=folder data.path=classes data.dataset.on_corrupt=skip data.dataset.max_skipped=0",
        r"or raise (\S+)$",
        "data=folder data.path=classes data.dataset.on_corrupt=skip {0}=1",
    ),
    (
        "data=folder data.path=pics data.dataset.max_pixels=100",
        r"above (data\S+)=",
        "data=folder data.path=pics {0}=1000",
    ),
    (
        "data=folder data.path=deep data.dataset.on_corrupt=skip data.dataset.max_skipped=0",
        r"set (data\S+) to .* \((\d+) for 12 bits",
        "data=folder data.path=deep data.dataset.on_corrupt=skip data.dataset.max_skipped=0 {0}={1}",
    ),
    ("data=array data.path=images.npz data.batch_size=100", r"use at most (\d+)", "D data.batch_size={0}"),
    pytest.param(
        *("data=array data.path=images.npz trainer.accelerator=gpu", r"use (\S+)$", "D {0}"),
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    ),
]


def _write_images(folder: Path, count: int = 20) -> None:
    for number, pixels in enumerate(small_images(count)[0]):
        path = folder / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.mark.parametrize(("wrong", "pattern", "right"), DATA)
def test_the_advice_about_images_works(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str], wrong: str, pattern: str, right: str
) -> None:
    for name in ("pics", "deep", "classes/train", "classes/val", "good/train", "good/val"):
        _write_images(Path(name))
    Path("classes/train/c0/0.png").write_bytes(b"")
    Image.fromarray(np.full((12, 12), 2000, np.uint16)).save("deep/c0/0.png")
    assert simclr("pack", "pics", "packed") == 0
    base = ["train", *OVERRIDES[1:], "data.batch_size=8", "data.num_workers=0", "dry_run=true"]
    assert simclr(*base, *wrong.split()) in (1, 2)
    words = right.format(*advised(capsys, pattern)).replace("D ", "data=array data.path=images.npz ")
    assert simclr(*base, *words.split()) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "spoil", "pattern"),
    [
        ("train_images", lambda x: x.astype("float32"), r"use \w*\.?(astype\('\w+'\))"),
        ("train_labels", lambda x: x.astype("float32"), r"use (astype\('\w+'\))"),
        ("train_images", lambda x: np.concatenate([x, x[..., :1]], 3), "leave the alpha channel out()"),
        ("train_images", lambda x: x.astype(object), "make it one array of one dtype()"),
    ],
)
def test_the_advice_about_an_array_works(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str], key: str, spoil: Any, pattern: str
) -> None:
    with np.load(npz) as file:
        arrays = dict(file)
    words = ["train", *OVERRIDES, f"data.path={npz}", "dry_run=true"]
    np.savez(npz, **{**arrays, key: spoil(arrays[key])}, allow_pickle=True)
    assert simclr(*words) == 1
    (advice,) = advised(capsys, pattern)
    spoilt = spoil(arrays[key])
    mended = spoilt.astype(re.findall(r"'(\w+)'", advice)[0]) if advice else spoilt[..., :3].astype("uint8")
    np.savez(npz, **{**arrays, key: mended})
    assert simclr(*words) == 0


def test_the_words_of_other_commands_that_are_advised_are_theirs(
    simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("trian") == 2
    assert advised(capsys, r"did you mean (\w+)")[0] in COMMANDS
    assert simclr("rank") == 2
    (advice,) = advised(capsys, r"type simclr (.+)$")
    assert simclr(*shlex.split(advice), *OVERRIDES, "data.path=missing.npz") == 1
    _write_images(Path("our pics"))
    Image.fromarray(np.full((12, 12), 2000, np.uint16)).save("our pics/c0/0.png")
    assert simclr("pack", "our pics", "out's", "qualty=80") == 2
    (advice,) = advised(capsys, r"did you mean (\w+)")
    assert simclr("pack", "our pics", "out's", f"{advice}=80") == 1
    key, value = advised(capsys, r"set (\w+) to .* \((\d+) for 12 bits")
    assert simclr("pack", "our pics", "out's", f"{key}={value}") == 0
    (advice,) = advised(capsys, r"train on them with: simclr (.+)$")
    words = [word for word in OVERRIDES if not word.startswith("data=")]
    assert simclr(*shlex.split(advice), *words, "data.batch_size=8", "data.num_workers=0", "dry_run=true") == 0
