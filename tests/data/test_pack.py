"""``simclr pack`` and ``data=packed``: the same images in the same order, whole or refused."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import OVERRIDES, SMALL, small_data
from simclr_lightning.data import (
    ImageError,
    ImageSet,
    ViewsDataModule,
    folder,
    pack,
    pack as exported,
    packed,
    packed as packed_source,
)
from simclr_lightning.data.disk import shards as room
from simclr_lightning.views import crop_views, finish_views

Program = Callable[..., int]
SIDE = 20


def smooth(number: int, width: int, height: int) -> Image.Image:
    """A picture of slow waves that only this number gives; every fourth is grey."""
    y, x = np.mgrid[0:height, 0:width] / 9
    waves = [np.sin(x * (1 + c) / 3 + number) + np.cos(y + number * (c + 1)) for c in range(3)]
    picture = Image.fromarray((np.stack(waves, -1) * 50 + 128).astype(np.uint8))
    return picture.convert("L") if number % 4 == 3 else picture


def fill(root: Path, layout: str) -> Path:
    """30 images of several sizes: "classes", "parts" (train/ and val/) or "flat"."""
    for number in range(30):
        kind = ("ape", "bee é")[number % 2]
        name = {
            "classes": f"{kind}/{number:02d}.a.png",
            "parts": f"{'val' if number > 23 else 'train'}/{kind}/{number:02d}.png",
            "flat": f"{number:02d}.png",
        }[layout]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        smooth(number, 16 + 3 * number, 60 - number).save(root / name)
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with classes, and what it was packed into: several shards."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "SHARD_BYTES", 12_000)
        done = pack(fill(root / "images", "classes"), root / "out", short_side=SIDE, quality=95)
    assert (done.images, done.classes, done.skipped) == (30, 2, ())
    assert done.shards == len(list((root / "out").glob("*.tar"))) > 2
    return root / "images", root / "out"


def members(out: Path) -> dict[str, bytes]:
    """File name -> JPEG, as Python's own tar reader finds them."""
    found = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as archive:
            data = {member.name: archive.extractfile(member).read() for member in archive}
        found |= {json.loads(data[key[:-3] + "json"])["file"]: data[key] for key in data if key.endswith(".jpg")}
    return found


def unpacked(out: Path, root: Path) -> Path:
    """The packed JPEGs as files under their old names: a folder of the same images."""
    for name, data in members(out).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


# -- what is written -----------------------------------------------------------------------------------------


def test_the_short_side_is_as_asked_and_nothing_is_enlarged(made: tuple[Path, Path]) -> None:
    images, out = made
    assert exported is pack
    assert packed_source is packed
    for name, data in members(out).items():
        with Image.open(images / name) as before, Image.open(io.BytesIO(data)) as after:
            scale = min(1, SIDE / min(before.size))
            assert after.format == "JPEG"
            assert min(after.size) == min(SIDE, *before.size)
            assert all(abs(a - b * scale) <= 0.5 for a, b in zip(after.size, before.size, strict=True))
            assert (after.mode == "L") == (before.mode == "L")
            pixels = torch.from_numpy(np.array(before.convert("RGB"))).permute(2, 0, 1)[None].double()
            want = torch.nn.functional.interpolate(
                pixels, size=after.size[::-1], mode="bicubic", antialias=True, align_corners=False
            )
            got = torch.from_numpy(np.array(after.convert("RGB"))).permute(2, 0, 1)[None].double()
            assert (got - want).abs().mean() < 2  # levels; JPEG's own error


# The library leaves the shards that it has read to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_streams_the_shards(made: tuple[Path, Path]) -> None:
    wds = pytest.importorskip("webdataset")
    images, out = made
    shards = [str(shard) for shard in sorted(out.glob("*.tar"))]
    samples = list(wds.WebDataset(shards, shardshuffle=False, empty_check=False))
    about = [json.loads(sample["json"]) for sample in samples]
    assert [one["file"] for one in about] == sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    assert all(one["class"] == one["file"].split("/")[0] for one in about)
    assert {(one["class"], one["label"]) for one in about} == {("ape", 0), ("bee é", 1)}
    assert {one["file"]: sample["jpg"] for one, sample in zip(about, samples, strict=True)} == members(out)


def test_the_same_images_give_the_same_bytes(made: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(made[0], tmp_path / name, short_side=SIDE, quality=95)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    prints = [packed(tmp_path / "one").fingerprint, packed(made[1]).fingerprint]
    assert prints[0] == prints[1]  # whatever the shards' size
    pack(made[0], tmp_path / "three", short_side=SIDE, quality=50)
    others = [packed(tmp_path / "three").fingerprint, packed(made[1], labels=False).fingerprint]
    assert len({*prints, *others}) == 3


# -- what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "labels"), [("classes", True), ("parts", True), ("flat", True), ("classes", False)])
def test_parts_classes_and_images_are_the_folders(layout: str, labels: bool, tmp_path: Path) -> None:
    pack(fill(tmp_path / "images", layout), tmp_path / "out", short_side=SIDE)
    same = unpacked(tmp_path / "out", tmp_path / "same")
    got, want = packed(tmp_path / "out", labels=labels, seed=3), folder(same, labels=labels, seed=3)
    assert (got.class_names, got.notes) == (want.class_names, want.notes)
    assert torch.equal(got.held_out, want.held_out)
    pairs: list[tuple[ImageSet | None, ImageSet | None]] = [(got.train, want.train), (got.test, want.test)]
    for one, two in pairs:
        assert (one is None) == (two is None)
        if one is None or two is None:
            continue
        assert list(one.names) == list(two.names)
        assert (one.labels is None) == (two.labels is None)
        assert one.labels is None or torch.equal(one.labels, two.labels)
        assert all(torch.equal(one.load(i), two.load(i)) for i in range(len(two)))


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_views_are_the_folders_from_any_step(workers: int, made: tuple[Path, Path], tmp_path: Path) -> None:
    sources = {packed: made[1], folder: unpacked(made[1], tmp_path)}
    for step in (0, 2, 4) if workers == 0 else (4,):
        rows = []
        for source, path in sources.items():
            data = small_data(batch=8, workers=workers, dataset=source, path=path)
            data._offset = 8 * step
            rows.append([data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()])
        assert len(rows[0]) == 3 - step % 3
        for one, two in zip(*rows, strict=True):
            assert all(torch.equal(one[key], two[key]) for key in ("indices", "x_a", "x_b"))


def test_views_are_crop_views_of_the_packed_images(made: tuple[Path, Path]) -> None:
    data = ViewsDataModule(packed, path=made[1], batch_size=8, recipe=SMALL, seed=5)
    names, jpegs = data.load().train.names, members(made[1])
    batch = next(iter(data.train_dataloader()))
    pixels = [np.array(Image.open(io.BytesIO(jpegs[names[i]])).convert("RGB")) for i in batch["indices"]]
    crops = torch.stack(
        [
            crop_views(torch.from_numpy(image).permute(2, 0, 1), seed=5, epoch=0, index=int(i), recipe=SMALL)
            for i, image in zip(batch["indices"], pixels, strict=True)
        ]
    )
    assert torch.equal(batch["crops"], crops)
    finished = data.on_after_batch_transfer(batch, 0)
    want = finish_views(crops, seed=5, epoch=0, indices=batch["indices"], recipe=SMALL)
    assert torch.equal(finished["x_a"], want[0])


def test_a_set_travels_to_a_worker_and_holds_few_files_open(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packed.__globals__, "OPEN_SHARDS", 2)
    train = packed(made[1], labels=False).train
    first = [train.load(i) for i in range(len(train))]
    arrived = pickle.loads(pickle.dumps(train))
    assert all(torch.equal(arrived.load(i), first[i]) for i in reversed(range(len(train))))
    assert len(arrived._open) == 2


# -- what is refused -----------------------------------------------------------------------------------------


def copy(made: tuple[Path, Path], to: Path) -> Path:
    to.mkdir()
    for path in made[1].iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: (out / "index.json").unlink(), "was not finished"),
        (lambda out: (out / "index.json").write_text("{}"), "damaged"),
        (lambda out: (out / "index.json").write_text('{"format": "x", "version": 1, "sha256": ""}'), "another format"),
        (lambda out: flip(out / "samples.npz", 200), "checksum differs"),
        (lambda out: (out / "samples.npz").unlink(), "checksum differs"),
        (lambda out: (out / "shard-000001.tar").unlink(), "is missing"),
        (lambda out: (out / "shard-000001.tar").write_bytes(b"x"), "has 1 bytes"),
        (lambda out: [path.unlink() for path in out.iterdir()], "is not a packed folder"),
    ],
)
def test_a_packed_folder_that_is_not_whole_is_refused(
    damage: Callable[[Path], object], said: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    out = copy(made, tmp_path / "out")
    damage(out)
    with pytest.raises(ValueError, match=said) as caught:
        packed(out)
    assert len(str(caught.value).splitlines()) == 1
    assert str(out) in str(caught.value)


def test_every_flipped_byte_of_the_index_is_noticed(made: tuple[Path, Path], tmp_path: Path) -> None:
    out = copy(made, tmp_path / "out")
    whole = (out / "samples.npz").read_bytes()
    for at in range(0, len(whole), 97):
        flip(out / "samples.npz", at)
        with pytest.raises(ValueError, match="checksum differs"):
            packed(out)
        (out / "samples.npz").write_bytes(whole)
    packed(out)


def test_a_damaged_image_is_named_or_skipped(made: tuple[Path, Path], tmp_path: Path) -> None:
    out = copy(made, tmp_path / "out")
    with tarfile.open(out / "shard-000001.tar") as archive:
        member = archive.getmembers()[2]
        name = json.load(archive.extractfile(archive.getmembers()[3]))["file"]
    flip(out / "shard-000001.tar", member.offset_data + member.size - 30)
    train = packed(out, labels=False).train
    for index, other in enumerate(train.names):
        if other == name:
            with pytest.raises(ImageError, match=rf"shard-000001\.tar, {re.escape(name)}: damaged.*on_corrupt=skip"):
                train.load(index)
        else:
            train.load(index)
    left = packed(out, labels=False, on_corrupt="skip")
    assert list(left.train.names) == [other for other in train.names if other != name]
    assert len(left.skipped) == 1
    assert name in left.skipped[0]
    assert any("1 files cannot be read" in note for note in left.notes)
    with pytest.raises(ImageError, match="max_skipped=0"):
        packed(out, on_corrupt="skip", max_skipped=0)


@pytest.mark.parametrize("path", [None, "nowhere", "file"])
def test_no_packed_folder(path: str | None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"data\.path"):
        packed(None if path is None else tmp_path / path)


# -- interrupted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (OSError(errno.ENOSPC, "No space left on device"), ValueError, "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), OSError, "Input"),
    ],
)
def test_a_packing_that_ends_early_leaves_nothing(
    error: BaseException,
    raised: type[BaseException],
    said: str,
    there: bool,
    made: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = room.ShardWriter.add, []

    def add(self: room.ShardWriter, *words: object) -> None:
        calls.append(words)
        if len(calls) == 9:
            assert (tmp_path / "out/shard-000000.tar").exists()
            with pytest.raises(ValueError, match="was not finished"):  # as a reader would find it after a kill
                packed(tmp_path / "out")
            raise error
        real(self, *words)

    monkeypatch.setattr(room.ShardWriter, "add", add)
    if there:
        (tmp_path / "out").mkdir()
    with pytest.raises(raised, match=said):
        pack(made[0], tmp_path / "out")
    assert (tmp_path / "out").exists() == there
    assert not list(tmp_path.glob("out/*"))


def test_a_disk_too_small_is_found_early(made: tuple[Path, Path], tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.setitem(pack.__globals__, "ESTIMATED_AFTER", 10)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match="the disk is full"):
        pack(made[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_do_not_pack_into_one_folder(made: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    other = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process"):
        pack(made[0], tmp_path / "out")
    os.close(other)
    assert list((tmp_path / "out").iterdir()) == []
    assert pack(made[0], tmp_path / "out").images == 30


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "two folders"),
        (["images"], 2, "two folders"),
        (["images", "out", "qualty=9"], 2, "did you mean quality?"),
        (["images", "out", "quality=0"], 2, "quality=0: it must be a whole number from 1 to 95"),
        (["images", "out", "short_side=big"], 2, "short_side=big"),
        (["images", "out", f"short_side={5000 * '9'}"], 2, "a whole number from 1 to 65500"),
        (["images", "out", "on_corrupt=maybe"], 2, "fail, skip"),
        (["nowhere", "out"], 1, "no such folder"),
        (["file", "out"], 1, "is a file"),
        (["empty", "out"], 1, "no image (the folder is empty)"),
        (["images", "file"], 1, "must be a new folder"),
        (["images", "link"], 1, "is a link that leads nowhere; OUT must be a new folder"),
        (["images", "out", "max_pixels=899"], 1, "30 x 30 = 900 pixels, above max_pixels=899"),
        (["images", "images"], 1, "is not empty"),
        (["images", "no/out"], 1, "make it first"),
        (["images", "half"], 1, "not finished"),
        (["half", "out"], 1, "is a packed folder already"),
        (["broken", "out"], 1, "on_corrupt=skip"),
        (["~nobody-of-this-name", "out"], 1, "in full"),
    ],
)
def test_mistakes_are_short_and_nothing_is_written(
    words: list[str], code: int, says: str, simclr: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "empty", "half", "broken"):
        (tmp_path / name).mkdir()
    smooth(1, 30, 30).save(tmp_path / "images/1.png")
    smooth(1, 30, 30).save(tmp_path / "broken/1.png")
    (tmp_path / "broken/2.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("x")
    (tmp_path / "half/shard-000000.tar").write_bytes(b"x")
    assert simclr("pack", *words) == code
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) <= 5
    assert not (tmp_path / "out").exists()


def test_pack_train_evaluate_embed(
    made: tuple[Path, Path], simclr: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").symlink_to(made[0])
    assert simclr("pack", "images", "a b", "short_side=16", "on_corrupt=skip") == 0
    said = capsys.readouterr().out
    assert "30 images, 2 classes" in said
    assert "data.path='a b'" in said
    words = [word for word in OVERRIDES if not word.startswith("data")]
    source = ["data=packed", "data.path=a b", "data.num_workers=0", "data.batch_size=8", "experiment=null"]
    assert simclr("train", *source, *words, "trainer.max_steps=4", "hydra.run.dir=run") == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["images_seen"]) == ("finished", 4, 32)
    assert summary["knn_top1"] is not None
    assert simclr("evaluate", "run", *source[:2]) == 0
    assert json.loads(Path("run/evaluation.json").read_text())["knn_top1"] == summary["knn_top1"]
    assert simclr("embed", "run", "a b", "packed.npz") == 0
    unpacked(Path("a b"), Path("same"))
    assert simclr("embed", "run", "same", "files.npz") == 0
    one, two = (np.load(name) for name in ("packed.npz", "files.npz"))
    assert one["files"].tolist() == two["files"].tolist() == sorted(members(Path("a b")))
    assert np.array_equal(one["h"], two["h"])
    assert simclr("train", "data=folder", "data.path=a b", *words) == 1
    assert "data=packed" in capsys.readouterr().err
