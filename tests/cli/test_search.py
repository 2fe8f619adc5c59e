"""Near-duplicates and nearest images: against brute force, and through ``simclr search``."""

from __future__ import annotations

import csv
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_images
from simclr_lightning import export_encoder, load_encoder, pictures, resnet
from simclr_lightning.app import embeddings as gallery_room
from simclr_lightning.cli import search as command
from simclr_lightning.evaluation import exact, faiss_index, groups, near_duplicates, near_duplicates_by, search
from simclr_lightning.evaluation.protocols import features as features_room
from simclr_lightning.evaluation.protocols.features import shared_extract

Program = Callable[..., int]


def clustered(n: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Rows in clusters, so that some pairs are similar and most are not."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n // 3, width, generator=generator)
    rows = centres[torch.arange(n) % len(centres)] + 0.25 * torch.randn(n, width, generator=generator)
    return rows * torch.rand(n, 1, generator=generator).add(0.1)


def brute(h: torch.Tensor, threshold: float) -> dict[tuple[int, int], float]:
    u = h.double().numpy()
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    return {(i, j): s for i in range(len(u)) for j in range(i + 1, len(u)) if (s := float(u[i] @ u[j])) >= threshold}


@pytest.mark.parametrize("blocks", [(2048, 16_384), (7, 10)])
def test_near_duplicates_equal_brute_force(blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_BLOCK", blocks[0])
    monkeypatch.setattr(search, "_COLUMNS", blocks[1])
    h = clustered(90)
    want = brute(h, 0.9)
    assert 20 < len(want) < 200
    found = near_duplicates(h, 0.9)
    pairs = dict(
        zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.similarity.tolist(), strict=True)
    )
    assert pairs.keys() == want.keys()
    assert found.total == len(want)
    assert all(pairs[pair] == pytest.approx(want[pair], abs=1e-6) for pair in want)
    assert found.similarity.tolist() == sorted(pairs.values(), reverse=True)
    top = near_duplicates(h, 0.9, most=5)
    assert top.total == len(want)
    assert top.similarity.tolist() == pytest.approx(sorted(want.values(), reverse=True)[:5], abs=1e-6)
    via = near_duplicates_by(exact(h), h, 0.9)
    assert (via.total, set(zip(via.first.tolist(), via.second.tolist(), strict=True))) == (len(want), want.keys())


def test_equal_rows_have_cosine_one_and_zero_rows_have_no_duplicates() -> None:
    row = torch.rand(1, 33)
    found = near_duplicates(torch.cat((row, torch.zeros(2, 33), 7 * row)), 1)
    assert (found.first.tolist(), found.second.tolist(), found.total) == ([0], [3], 1)
    assert found.similarity.item() == pytest.approx(1)


def test_groups_are_the_connected_parts_largest_first() -> None:
    pairs = search.Pairs(torch.tensor([5, 1, 2, 0]), torch.tensor([7, 2, 4, 3]), torch.ones(4), 4)
    assert groups(pairs, 9).tolist() == [1, 0, 0, 1, 0, 2, -1, 2, -1]
    nothing = search.Pairs(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64), torch.ones(0), 0)
    assert groups(nothing, 3).tolist() == [-1] * 3


@pytest.mark.parametrize("parted", [False, True])
def test_faiss_finds_what_is_near_with_exact_cosines(parted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if parted:
        monkeypatch.setattr(search, "_SMALLEST_PARTED", 1000)
    h = clustered(3000)
    values, index = faiss_index(h)(h[:50], 5)
    want_values, want = exact(h)(h[:50], 5)
    same = sum(len(set(a) & set(b)) for a, b in zip(index.tolist(), want.tolist(), strict=True)) / 250
    assert same > (0.7 if parted else 0.99)
    u = torch.nn.functional.normalize(h.double(), dim=1)
    assert torch.allclose(values.double(), torch.einsum("mf,mkf->mk", u[:50], u[index]), atol=1e-6)
    assert (values.diff(dim=1) <= 0).all()
    assert want_values.shape == values.shape


@pytest.mark.parametrize(("threshold", "rows"), [(0.0, 3), (1.01, 3), (math.nan, 3), (0.9, 1)])
def test_wrong_arguments_are_refused(threshold: float, rows: int) -> None:
    with pytest.raises(ValueError, match=r"threshold|two images"):
        near_duplicates(torch.rand(rows, 4), threshold)
    with pytest.raises(ValueError, match="NaN"):
        near_duplicates(torch.full((3, 2), math.nan), 0.5)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """An exported encoder; a folder of six images, of which two are copies of the first, one a shade brighter."""
    torch.manual_seed(0)
    encoder = resnet(10, 0.125, "cifar")
    export_encoder(encoder, tmp_path / "exported", card={}, size=12)
    images = [*small_images(4)[0]]
    images += [images[0], np.minimum(images[0].astype(int) + 1, 255).astype(np.uint8)]
    for index, image in enumerate(images):
        path = tmp_path / "images" / ("b é [x]" if index % 2 else "a") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "exported", tmp_path / "images"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def features(made: tuple[Path, Path]) -> tuple[list[str], torch.Tensor]:
    names = sorted(str(path.relative_to(made[1])) for path in made[1].rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(made[1] / n))).permute(2, 0, 1) for n in names])
    with torch.no_grad():
        return names, torch.nn.functional.normalize(load_encoder(made[0])(pixels.float() / 255).double(), dim=1)


def test_a_query_and_the_second_one_quickly(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = made[1] / "a" / "0.png"
    assert simclr("search", *made, "--query", query, "-k", "3", "--out", "found") == 0
    names, h = features(made)
    cosine = h @ h[names.index("a/0.png")]
    order = [names[i] for i in cosine.argsort(descending=True) if names[i] != "a/0.png"][:3]
    rows = rows_of(Path("found/nearest.csv"))
    assert {row["file"] for row in rows} == set(order)
    assert rows[0]["file"] == "a/4.png"  # its copy; the query itself is in the folder and is left out
    assert [float(row["similarity"]) for row in rows] == pytest.approx(
        [float(cosine[names.index(r["file"])]) for r in rows], abs=1e-5
    )
    assert Path("found/nearest.png").stat().st_size > 1000
    assert "a/4.png" in capsys.readouterr().out
    calls: list[int] = []
    for room in (features_room, gallery_room):
        real = room.extract
        monkeypatch.setattr(room, "extract", lambda *a, real=real, **k: calls.append(1) or real(*a, **k))
    (outside := Path("other.png")).write_bytes(query.read_bytes())
    assert simclr("search", *made, "--query", outside, query, "-k", "50", "--index", "faiss") == 0
    assert calls == [1]  # only the queries
    assert "a/0.png" in capsys.readouterr().out
    (made[1] / "a" / "new.png").write_bytes(query.read_bytes())
    assert simclr("search", *made, "--query", outside) == 0
    assert len(calls) == 3  # the folder has changed: all images again, and the query
    assert not list(Path("exported/features").glob(".*"))
    for path in Path("exported/features").glob("*.npy"):
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])  # one bit, in the last number
    capsys.readouterr()
    assert simclr("search", *made, "--query", outside) == 0
    assert len(calls) == 5
    assert "extracted again" in capsys.readouterr().out


def test_duplicates_of_a_folder(made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str]) -> None:
    names, h = features(made)
    low = float((h @ h.T)[names.index("a/0.png"), names.index("b é [x]/5.png")]) - 1e-4
    assert simclr("search", *made, "--threshold", f"{low:.6f}", "--out", "found", "--duplicates") == 0
    rows = rows_of(Path("found/duplicates.csv"))
    copies = {"a/0.png", "a/4.png", "b é [x]/5.png"}
    assert {row["file"] for row in rows if row["group"] == "1"} | {
        row["other"] for row in rows if row["group"] == "1"
    } >= copies
    want = {(names[i], names[j]) for i, j in brute(h, low)}
    assert {(row["file"], row["other"]) for row in rows} == want
    assert Path("found/duplicates.png").stat().st_size > 1000
    capsys.readouterr()
    assert simclr("search", *made, "--threshold", "1") == 0
    assert "1 pairs with a cosine of at least 1, in 1 groups" in capsys.readouterr().out.replace("\n", " ")
    (made[1] / "a" / "4.png").unlink()
    assert simclr("search", *made, "--threshold", "1") == 0
    assert "no two of the 5 images" in capsys.readouterr().out
    assert simclr("search", *made, "--threshold", "1", "--out", "found") == 0
    assert rows_of(Path("found/duplicates.csv")) == []  # not those of the previous search
    assert not Path("found/duplicates.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "images"], "nowhere does not exist"),
        (["images", "images"], "holds no encoder.safetensors"),
        (["exported", "nowhere"], "no such folder"),
        (["exported", "exported"], "no images"),
        (["exported"], "required: IMAGES"),
        (["exported", "images", "--query", "missing.png"], "missing.png: there is no such image file"),
        (["exported", "images", "--query", "exported/card.md"], "remove or replace it"),
        (["exported", "images", "--query", "a.png", "--duplicates"], "not allowed with"),
        (["exported", "images", "--threshold", "1.5"], "at most 1"),
        (["exported", "images", "--threshold", "x"], "invalid float"),
        (["exported", "images", "-k", "0"], "at least 1"),
        (["exported", "images", "--out", "exported/card.md"], "is a file; give a folder"),
        (["exported", "images", "--out", "link"], "is a link that leads nowhere; give a folder"),
        (["exported", "images", "--out", "/proc/found"], "/proc/found: No such file"),
        (["exported", "one"], "one image"),
        (["exported", "one", "--query", "one/0.png"], "only the query"),
        (["exported", "images", "--index", "annoy"], "invalid choice"),
    ],
)
def test_mistakes_are_short(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    Path("one").mkdir()
    Path("link").symlink_to("nowhere")
    Path("one/0.png").write_bytes((made[1] / "a" / "0.png").read_bytes())
    assert simclr("search", *arguments) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 6


@pytest.mark.parametrize("arguments", [("--threshold", "0.5"), ("--query", "images/a/0.png")])
def test_an_interrupted_search_leaves_the_older_files_or_none(
    made: tuple[Path, Path], simclr: Program, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str]
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "image_rows", stop)
        assert simclr("search", *made, *arguments, "--out", "new/found") == 130
    assert sorted(path.name for path in Path().iterdir()) == ["exported", "images"]
    assert simclr("search", *made, *arguments, "--out", "found") == 0
    before = {path: path.read_bytes() for path in Path("found").iterdir()}
    assert len(before) == 2
    (made[1] / "b é [x]" / "1.png").unlink()
    monkeypatch.setattr(pictures, "image_rows", stop)
    assert simclr("search", *made, *arguments, "--out", "found") == 130
    assert {path: path.read_bytes() for path in Path("found").iterdir()} == before


def test_a_run_that_is_not_writable_is_searched_without_a_cache(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    (made[0] / "features").write_text("in the way")
    assert simclr("search", *made, "--threshold", "1") == 0
    assert "h is not cached" in capsys.readouterr().out
    assert simclr("search", "--help") == 0
    assert "--threshold" in capsys.readouterr().out


def test_h_larger_than_memory_recommends_faiss(
    made: tuple[Path, Path], simclr: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_HALF", 1e-12)
    assert simclr("search", *made) == 1
    assert "--index faiss" in capsys.readouterr().err
    assert simclr("search", *made, "--index", "faiss", "--threshold", "1") == 0


def test_ctrl_c_does_not_wait_for_the_threads_of_several_devices(made: tuple[Path, Path]) -> None:
    encoder, begun = load_encoder(made[0]), []

    def batches(rows: torch.Tensor) -> Iterator[torch.Tensor]:
        for row in rows:
            begun.append(int(row))
            if len(begun) == 3:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.05)
            yield torch.rand(1, 3, 12, 12)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        shared_extract(encoder, batches, torch.arange(60), [torch.device("cpu")] * 2)
    assert len(begun) < 20
