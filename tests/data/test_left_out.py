"""What lies in a folder of images and is none of them: left by systems, network disks and this program's own runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import small_images
from simclr_lightning import checkpoint
from simclr_lightning.data import folder
from simclr_lightning.data.disk import scan_cache
from simclr_lightning.data.disk.listing import list_images, passed_over

Program = Callable[..., int]
RUN = (
    "data=folder", "data.path=.", "model.encoder.width=0.125", "data.batch_size=8", "data.num_workers=0",
    "views=simclr_cifar", "views.size=8", "trainer.accelerator=cpu", "trainer.max_epochs=1", "optimizer=adamw",
)  # fmt: skip


def picture(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small_images(number + 1)[0][number]).save(path)


def pets(root: Path) -> list[str]:
    names = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(8)]
    for number, name in enumerate(names):
        picture(root / name, number)
    return names


LEFT = {  # path of an image -> what it is counted as
    "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": "@eaDir",
    "@eaDir/2.jpg": "@eaDir",
    "@EADIR/2.jpg": "@EADIR",
    "#recycle/old.png": "#recycle",
    "@Recycle/old.png": "@Recycle",
    "#snapshot/2026/cat/1.png": "#snapshot",
    ".@__thumb/1.png": ".@__thumb",
    "$RECYCLE.BIN/S-1-5/$R1.png": "$RECYCLE.BIN",
    "System Volume Information/1.png": "System Volume Information",
    "FOUND.000/1.png": "FOUND.000",
    "lost+found/1.png": "lost+found",
    "dog/.ipynb_checkpoints/1-checkpoint.png": ".ipynb_checkpoints",
    "__MACOSX/cat/1.png": "__MACOSX",
    ".Trash-1000/files/1.png": ".Trash-1000",
    ".git/1.png": ".git",
    "cat/SYNOPHOTO_THUMB_XL.jpg": "SYNOPHOTO_THUMB_* files",
    "cat/._1.png": "._* files",
    "dog/.hidden.png": "hidden files",
}


def test_what_systems_and_network_disks_leave_is_left_out_and_counted(tmp_path: Path) -> None:
    names = pets(tmp_path)
    before = folder(tmp_path)
    for path in LEFT:
        picture(tmp_path / path)
    (tmp_path / "dog/.DS_Store").write_bytes(b"x")
    (tmp_path / "dog/._2.png").write_bytes(b"x")
    listing = list_images(tmp_path)
    assert listing.names == names
    assert {kind: count for kind, (count, _) in listing.left_out.items()} == {
        **dict.fromkeys(LEFT.values(), 1),
        "@eaDir": 2,
        "._* files": 2,
        "hidden files": 2,
    }
    after = folder(tmp_path)
    assert after.class_names == ("cat", "dog")
    assert after.fingerprint == before.fingerprint
    (note,) = set(after.notes) - set(before.notes)
    assert note.startswith("data.path: left out: ")
    assert note.endswith(f"and {len({*LEFT.values()}) - 8} more kinds")


def test_each_kind_is_named_with_a_count_and_an_example(tmp_path: Path) -> None:
    pets(tmp_path)
    for path in ("cat/@eaDir/1.jpg", "dog/@eaDir/1.jpg", "$RECYCLE.BIN/1.png", "cat/._a.png"):
        picture(tmp_path / path)
    assert passed_over(list_images(tmp_path)) == [
        "left out: $RECYCLE.BIN (1, e.g. $RECYCLE.BIN), ._* files (1, e.g. cat/._a.png), @eaDir (2, e.g. cat/@eaDir)"
    ]


def test_a_folder_of_such_a_name_is_read_when_it_is_the_data_set(tmp_path: Path) -> None:
    for name in ("@eaDir", ".hidden", "lost+found"):
        names = pets(tmp_path / name)
        assert list_images(tmp_path / name).names == names


def test_names_that_only_look_like_those_stay(tmp_path: Path) -> None:
    for name in ("recycled", "eaDir", "lost and found", "synophoto", "MACOSX", "snapshot"):
        picture(tmp_path / name / "1.png")
    assert len(list_images(tmp_path).names) == 6


def test_what_is_left_out_is_remembered_with_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_cache, "STORED_FROM", 1)
    monkeypatch.setattr(scan_cache, "SETTLED", 0)
    pets(tmp_path / "images")
    picture(tmp_path / "images/cat/@eaDir/1.jpg")
    first, second = list_images(tmp_path / "images"), list_images(tmp_path / "images")
    assert (first.cached, second.cached) == (False, True)
    assert first.left_out == second.left_out == {"@eaDir": (1, "cat/@eaDir")}


# -- this program's own ---------------------------------------------------------------------------------------


def fingerprint(run: Path) -> str:
    found = checkpoint.newest(run)
    assert found is not None
    return str(checkpoint.load(found[0])["ViewsDataModule"]["fingerprint"])


def test_runs_inside_the_images_are_left_out_and_a_run_resumes(
    simclr: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pets(tmp_path)
    for run in ("outputs/one", "cat/two"):
        assert simclr("train", *RUN, f"hydra.run.dir={run}") == 0
    assert fingerprint(tmp_path / "outputs/one") == fingerprint(tmp_path / "cat/two")
    assert "folders of runs (2, e.g. cat/two)" in capsys.readouterr().out
    assert simclr("evaluate", "outputs/one", "knn.k=3") == 0
    assert simclr("report", "outputs") == 0
    assert (tmp_path / "outputs/curves.png").exists()
    splits = folder(tmp_path)
    assert splits.class_names == ("cat", "dog")
    assert any("folders of runs (2, e.g. cat/two)" in note for note in splits.notes)
    assert any("pictures of runs (" in note and "e.g. outputs/curves.png)" in note for note in splits.notes)
    assert splits.fingerprint == fingerprint(tmp_path / "outputs/one")
    assert simclr("train", "ckpt_path=outputs/one", "trainer.max_epochs=2") == 0


def test_the_images_own_folder_as_a_runs_folder(simclr: Program, tmp_path: Path) -> None:
    names = pets(tmp_path)
    assert simclr("train", *RUN, "hydra.run.dir=.") == 0
    assert (tmp_path / "views.png").exists()
    assert simclr("evaluate", ".", "knn.k=3") == 0
    listing = list_images(tmp_path)
    assert listing.names == names
    assert listing.left_out["pictures of runs"][0] == len([*tmp_path.glob("*.png")]) == 5
    assert folder(tmp_path).fingerprint == fingerprint(tmp_path)


@pytest.mark.parametrize("marks", [(".hydra/config.yaml",), ("summary.json", "checkpoints/last.ckpt")])
def test_a_runs_folder_is_known_by_what_it_holds(marks: tuple[str, ...], tmp_path: Path) -> None:
    names = pets(tmp_path)
    for name in ("views.png", "wandb/media/1.png", "images/deep/1.png"):
        picture(tmp_path / "mine/run" / name)
    for name in marks:
        (tmp_path / "mine/run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine/run" / name).write_text("x")
    listing = list_images(tmp_path)
    assert listing.names == names
    assert listing.left_out == {"folders of runs": (1, "mine/run")}
    (tmp_path / "mine/run" / marks[0]).unlink()
    assert len(list_images(tmp_path).names) == len(names) + 3


def test_pictures_of_commands_are_left_out_only_next_to_what_the_commands_write(tmp_path: Path) -> None:
    names = ["a/confusion.png", "a/views.png", "b/nearest.png", "b/score.png", "c/views.png"]
    for name in names:
        picture(tmp_path / name)
    assert list_images(tmp_path).names == names
    (tmp_path / "a/evaluation.json").write_text("{}")
    (tmp_path / "b/nearest.csv").write_text("x")
    assert list_images(tmp_path).names == ["a/views.png", "b/score.png", "c/views.png"]
