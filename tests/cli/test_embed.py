"""``simclr embed``: h of every image with its name, in three formats; and the mistakes that are refused."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_images
from simclr_lightning import export_encoder, load_encoder, resnet
from simclr_lightning.views import centre_view

Program = Callable[..., int]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """An exported encoder and a folder of five images in two subfolders, one with a name in another language."""
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, "cifar")
    export_encoder(encoder, tmp_path / "exported", card={}, size=12)
    for index, image in enumerate(small_images(5)[0]):
        path = tmp_path / "images" / ("b é 图" if index % 2 else "a") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "exported", tmp_path / "images"


def expected(exported: Path, images: Path) -> tuple[list[str], torch.Tensor]:
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(images / n))).permute(2, 0, 1) for n in names])
    with torch.no_grad():
        return names, load_encoder(exported)(centre_view(pixels, size=12))


def test_three_formats_hold_the_same(made: tuple[Path, Path], simclr: Program) -> None:
    names, h = expected(*made)
    for name in ("out.npz", "out.csv", "out.parquet"):
        assert simclr("embed", *made, name) == 0
    arrays = np.load("out.npz", allow_pickle=False)
    assert arrays["files"].tolist() == names
    assert (arrays["h"].dtype, arrays["h"].shape) == (np.float32, tuple(h.shape))
    assert np.allclose(arrays["h"], h, atol=1e-6)
    with Path("out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == names
    assert np.allclose(np.array([row[1:] for row in rows[1:]], dtype=np.float32), h, atol=1e-6)
    import pyarrow.parquet as pq

    table = pq.read_table("out.parquet")
    assert table["file"].to_pylist() == names
    assert np.allclose(np.array(table["h"].to_pylist()), h, atol=1e-6)
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "images", "out.npz"], "nowhere"),
        (["exported", "nowhere", "out.npz"], "no such folder"),
        (["exported", "images", "out.txt"], ".parquet"),
        (["exported", "images", "no/out.npz"], "make it first"),
        (["exported", "images"], "required: OUT"),
        (["exported", "exported", "out.npz"], "no images"),
        (["exported", "images", "out.npz", "--map", "som"], "invalid choice"),
        (["exported", "images", "images/a/0.npz", "--map", "pca"], "one of the images"),
        (["exported", "images", "folder.npz"], "is a folder"),
        (["exported", "images", "taken.npz"], "taken.npz exists; give another OUT, or --force"),
        (["exported", "images", "map.npz", "--map", "pca"], "map.png exists; give another OUT, or --force"),
        (["exported", "images", "folder.csv", "--map", "pca", "--force"], "folder.png is a folder"),
        (["exported", "images", "/proc/out.npz"], "/proc/"),
    ],
)
def test_mistakes_are_short_and_nothing_is_written(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    for name in ("folder.npz", "folder.png"):
        Path(name).mkdir()
    for name in ("taken.npz", "map.png"):
        Path(name).write_text("mine")
    before = sorted(Path().iterdir())
    assert simclr("embed", *arguments) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert sorted(Path().iterdir()) == before
    assert Path("taken.npz").read_text() == Path("map.png").read_text() == "mine"


def test_file_names_that_are_not_utf8_are_written(made: tuple[Path, Path], simclr: Program) -> None:
    odd = os.fsdecode(b"n\xff.png")
    try:
        (made[1] / odd).write_bytes((made[1] / "a/0.png").read_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    for name in ("out.npz", "out.csv", "out.parquet"):
        assert simclr("embed", *made, name) == 0
    assert odd in np.load("out.npz")["files"].tolist()
    assert b"\nn\xff.png," in Path("out.csv").read_bytes()
    assert simclr("search", *made, "--threshold", "1", "--out", "found") == 0
    assert b"n\xff.png" in Path("found/duplicates.csv").read_bytes()


def test_the_map_is_next_to_the_file(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("embed", *made, "out.npz", "--map", "tsne") == 0
    assert "the map is in out.png" in capsys.readouterr().out
    with Image.open("out.png") as picture:
        assert picture.width > 1000  # wide enough for the names of both folders
    assert simclr("embed", *made, "out.npz", "--map", "pca") == 1
    before = Path("out.png").read_bytes()
    assert simclr("embed", *made, "out.npz", "--map", "pca", "--force") == 0
    assert Path("out.png").read_bytes() != before


def test_a_broken_image_is_named(made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str]) -> None:
    (made[1] / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert simclr("embed", *made, "out.npz") == 1
    assert "broken.png" in capsys.readouterr().err
    assert not Path("out.npz").exists()


def test_an_image_above_the_limit_is_told_what_embed_and_search_can_do(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("1", (8001, 8000)).save(made[1] / "a" / "large.png")
    for words in (("embed", *made, "out.npz"), ("search", *made)):
        assert simclr(*words) == 1
        said = capsys.readouterr().err
        assert "large.png: 8001 x 8000 = 64,008,000 pixels, above --max-pixels 64,000,000" in said
        assert "--on-corrupt skip" in said
        assert "data." not in said
    assert simclr("search", *made, "--max-pixels", "64008000") == 0
    assert simclr("embed", *made, "out.npz", "--on-corrupt", "skip") == 0
    assert "1 files cannot be read as images and are skipped" in capsys.readouterr().out
    assert "a/large.png" not in np.load("out.npz")["files"].tolist()
    assert simclr("embed", *made, "more.npz", "--max-pixels", "0") == 1
    assert "--max-pixels 0: must be from 1" in capsys.readouterr().err


def test_the_scale_of_deep_images_is_an_option(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    dark, light = (np.full((16, 16), value, dtype=np.uint16) for value in (3000, 4000))
    for name, pixels in (("dark", dark), ("light", light)):
        Image.fromarray(pixels).save(made[1] / f"{name}.png")
    assert simclr("embed", *made, "out.npz") == 1
    said = capsys.readouterr().err
    assert "set --full-scale to the sample value of white (4095 for 12 bits)" in said
    assert "data." not in said
    assert simclr("embed", *made, "out.npz", "--full-scale", "4095") == 0
    for name, value in (("dark", 3000), ("light", 4000)):  # the 8-bit images that they are
        Image.new("L", (16, 16), round(value / 4095 * 255)).save(made[1] / f"{name}.png")
    assert simclr("embed", *made, "same.npz") == 0
    assert np.array_equal(np.load("out.npz")["h"], np.load("same.npz")["h"])


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "FROM", "IMAGES", "a/b/out.npz"),
        ("export", "FROM", "a/b"),
        ("search", "FROM", "IMAGES", "--out", "a/b"),
    ],
)
def test_a_file_where_a_folder_is_needed_is_refused_before_the_work(
    words: tuple[str, ...], made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a").write_text("kept")
    places = {"FROM": "not there", "IMAGES": made[1]}  # what cannot be loaded was not tried
    assert simclr(*(places.get(word, word) for word in words)) == 1
    said = capsys.readouterr().err
    assert "a: Not a directory" in said or "does not exist" in said
    assert Path("a").read_text() == "kept"


def test_help_and_unknown_commands(simclr: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert simclr("embed", "--help") == 0
    assert simclr() == 0
    assert "evaluate RUN" in capsys.readouterr().out
    assert simclr("trian") == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert simclr("evaluate", "--help") == 0
