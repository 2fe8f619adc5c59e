"""A folder of images: what is found, what it means, and what is said when something is wrong with it."""

import os
import pickle
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simclr_lightning.data import FolderImages, ImageError, folder, folder as exported
from simclr_lightning.data.disk import unreadable
from simclr_lightning.data.disk.layout import lay_out
from simclr_lightning.data.disk.listing import list_images
from simclr_lightning.data.images import PackedNames

MINI = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenette-mini"


def pixels(number, size=8):
    """A picture that only this number gives."""
    return np.random.default_rng(number).integers(0, 256, size=(size, size, 3), dtype=np.uint8)


def fill(root, names, first=0):
    for number, name in enumerate(names, start=first):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path, "PNG")
    return root


def classes(prefix="", count=10, names=("ape", "bee", "cow")):
    return [f"{prefix}{name}/{number:03d}.png" for name in names for number in range(count)]


def test_class_folders_are_labels_and_every_image_is_loaded_from_its_file(tmp_path):
    names = classes(count=20)
    splits = folder(fill(tmp_path, names))
    assert exported is folder
    assert splits.class_names == ("ape", "bee", "cow")
    assert isinstance(splits.train, FolderImages)
    assert splits.train.tensor is None
    assert sorted([*splits.train.names, *splits.test.names]) == names
    for images in (splits.train, splits.test):
        assert list(images.names) == sorted(images.names)
        for index, name in enumerate(images.names):
            assert splits.class_names[images.labels[index]] == name.split("/")[0]
            found = images.load(index).permute(1, 2, 0).numpy()
            assert np.array_equal(found, pixels(names.index(name)))


def test_a_labelled_folder_without_test_holds_a_seeded_fifth_of_every_class_aside(tmp_path):
    fill(tmp_path, classes(count=20))
    splits = folder(tmp_path, seed=1)
    assert splits.test.labels.bincount().tolist() == [4, 4, 4]
    assert splits.train.labels.bincount().tolist() == [16, 16, 16]
    assert len(splits.held_out) == 5
    assert any("a seeded fifth (12 images)" in note for note in splits.notes)
    assert list(folder(tmp_path, seed=1).test.names) == list(splits.test.names)
    assert list(folder(tmp_path, seed=2).test.names) != list(splits.test.names)
    assert torch.equal(folder(tmp_path, seed=1).held_out, splits.held_out)


@pytest.mark.parametrize("part", ["val", "test", "valid", "validation"])
def test_train_beside_a_part_for_testing(tmp_path, part):
    fill(tmp_path, classes("train/") + classes(f"{part}/", count=2, names=("bee", "cow")))
    splits = folder(tmp_path)
    assert list(splits.train.names) == classes("train/")
    assert list(splits.test.names) == classes(f"{part}/", count=2, names=("bee", "cow"))
    assert splits.class_names == ("ape", "bee", "cow")
    assert splits.test.labels.tolist() == [1, 1, 2, 2]
    assert splits.train.labels[splits.held_out].tolist() == [0, 1, 2]
    scored = f"data.path: {part}/ is taken as the test part, as there is no other; a tenth of train is held out"
    assert [note[: len(scored)] for note in splits.notes] == ([] if part == "test" else [scored])


def test_an_unsorted_test_folder_gives_way_to_val(tmp_path):
    fill(tmp_path, classes("train/") + classes("val/", count=2) + ["test/1.png", "test/2.png"])
    splits = folder(tmp_path)
    assert list(splits.test.names) == classes("val/", count=2)
    assert "test/ is not used" in splits.notes[0]


def test_with_test_and_val_both_labeled_test_is_taken(tmp_path):
    fill(tmp_path, classes("train/") + classes("val/", count=2) + classes("test/", count=3))
    assert list(folder(tmp_path).test.names) == classes("test/", count=3)


def test_train_alone(tmp_path):
    splits = folder(fill(tmp_path, classes("train/")))
    assert splits.class_names == ("ape", "bee", "cow")
    assert len(splits.test) == 6


def test_a_class_called_train(tmp_path):
    splits = folder(fill(tmp_path, classes(names=("bus", "train"))))
    assert splits.class_names == ("bus", "train")


def test_what_is_neither_train_nor_test_is_said(tmp_path):
    splits = folder(fill(tmp_path, classes("train/") + classes("val/") + ["examples/1.png", "logo.png"]))
    assert len(splits.train) == 30
    assert "data.path: not used, being no part: examples/, images next to the folders" in splits.notes


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"{number}.png" for number in range(20)], ""),
        (["cover.png", *classes()], "not labeled: cover.png is in no class folder"),
        ([f"all/{number}.png" for number in range(20)], "not labeled: all images are in one folder, all/"),
    ],
)
def test_flat_and_mixed_folders_are_not_labeled(tmp_path, names, said):
    splits = folder(fill(tmp_path, names))
    assert len(splits.train) == len(names)
    assert splits.train.labels is None
    assert splits.class_names is None
    assert splits.test is None
    assert len(splits.held_out) == round(len(names) / 10)
    assert said in " ".join(splits.notes)


def test_labels_can_be_ignored(tmp_path):
    fill(tmp_path / "a", classes())
    splits = folder(tmp_path / "a", labels=False)
    assert list(splits.train.names) == classes()
    assert (splits.train.labels, splits.test, splits.class_names) == (None, None, None)
    fill(tmp_path / "b", classes("train/") + classes("val/", count=2))
    splits = folder(tmp_path / "b", labels=False)
    assert list(splits.train.names) == classes("train/")
    assert list(splits.test.names) == classes("val/", count=2)
    assert (splits.train.labels, splits.test.labels, splits.class_names) == (None, None, None)


def test_a_class_that_train_lacks_is_refused(tmp_path):
    fill(tmp_path, classes("train/") + classes("val/", names=("ape", "yak")))
    with pytest.raises(ValueError, match="val/ has a class that train does not have: yak/; rename"):
        folder(tmp_path)


def test_classes_are_the_first_level_whatever_lies_below(tmp_path):
    fill(tmp_path, ["ape/1.png", "ape/old/x/2.png", "bee/new/3.png", "bee/new/4.png"])
    splits = folder(tmp_path)
    assert splits.class_names == ("ape", "bee")
    assert len(splits.train) + len(splits.test) == 4


def test_layout_needs_no_files():
    layout = lay_out(["a/1", "b/1"], labels=True, seed=0)
    assert len(layout.train.names) == len(layout.test.names) == 1


# What is found.


def test_non_images_and_hidden_files_are_passed_over(tmp_path):
    fill(
        tmp_path,
        ["a/1.png", "b/2.PNG", "b/3.png", ".hidden.png", ".git/3.png", "__MACOSX/a/4.png", "a/._1.png"],
    )
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "Thumbs.db").write_text("x")
    (tmp_path / "list.png.csv").write_text("x")
    splits = folder(tmp_path)
    assert sorted([*splits.train.names, *splits.test.names]) == ["a/1.png", "b/2.PNG", "b/3.png"]
    assert any("3 passed over: not named like images (e.g. Thumbs.db)" in note for note in splits.notes)


def test_links_are_confined_and_every_file_is_found_once(tmp_path):
    outside = fill(tmp_path / "outside", ["secret/1.png", "2.png"])
    root = fill(tmp_path / "root", ["a/1.png", "a/2.png", "b/3.png", "b/.pool/4.png", ".blobs/5"], first=9)
    (root / "a" / "loop").symlink_to(root)
    (root / "b" / "loop").symlink_to("../b")
    (root / "a" / "self.png").symlink_to("self.png")
    (root / "a" / "again.png").symlink_to("1.png")
    (root / "b" / "gone.png").symlink_to("nowhere.png")
    (root / "c").symlink_to(outside)
    (root / "b" / "out.png").symlink_to(outside / "2.png")
    (root / "b" / "up.png").symlink_to("../../outside/2.png")
    (root / "b" / "pooled.png").symlink_to(".pool/4.png")
    (root / "b" / "pooled2.png").symlink_to(".pool/4.png")
    (root / "b" / "blob.png").symlink_to("../.blobs/5")
    os.link(root / "a" / "2.png", root / "b" / "hard.png")
    os.mkfifo(root / "a" / "pipe.png")
    listing = list_images(root)
    assert listing.names == ["a/1.png", "a/2.png", "b/3.png", "b/blob.png", "b/pooled.png"]
    assert listing.sizes == [(root / name).stat().st_size for name in listing.names]
    assert listing.outside == ("b/out.png", "b/up.png", "c")
    assert listing.folder_links == ("a/loop", "b/loop")
    assert listing.broken == ("a/self.png", "b/gone.png")
    assert listing.repeated == ("a/again.png", "b/hard.png", "b/pooled2.png")
    assert listing.others == ("a/pipe.png",)
    (tmp_path / "entry").symlink_to(root)
    assert list_images(tmp_path / "entry") == listing
    notes = " ".join(folder(root).notes)
    assert "3 passed over: links that lead out of data.path (e.g. b/out.png)" in notes


def test_a_sibling_whose_name_begins_like_the_root_is_outside(tmp_path):
    fill(tmp_path / "root-private", ["1.png"])
    root = fill(tmp_path / "root", ["1.png", "2.png"])
    (root / "3.png").symlink_to(tmp_path / "root-private" / "1.png")
    assert list_images(root).names == ["1.png", "2.png"]


def test_names_of_any_language_and_length(tmp_path):
    strange = [
        "猫/図 一.png",
        "кот/ёж, большой=(1).png",
        "قط/~$;&'.png",
        "c\u0327a/e\u0301.png",
        "emoji/🦊 #%.png",
        "line/a\nb.png",
        f"{'d' * 255}/{'n' * 251}.png",
        os.fsdecode(b"raw/\xff\xfe.png"),
    ]
    splits = folder(fill(tmp_path, strange), labels=False)
    assert list(splits.train.names) == sorted(strange)
    for index, name in enumerate(splits.train.names):
        found = splits.train.load(index).permute(1, 2, 0).numpy()
        assert np.array_equal(found, pixels(strange.index(name)))
    assert len(splits.fingerprint) == 32


def test_deep_folders(tmp_path):
    deep = "/".join(["d" * 60] * 40)
    names = [f"{deep}/1.png", f"{deep}/2.png"]
    assert list(folder(fill(tmp_path, names)).train.names) == names


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, classes())
    real = os.scandir

    def refuse(path):
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'bee'}: Permission denied")):
        folder(tmp_path)


# What is wrong.


def test_missing_empty_and_too_small_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "one", ["1.png"])
    fill(tmp_path / "part", ["train/1.png", "val/1.png", "val/2.png"])
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    for path, said in (
        (None, "data.path=DIR"),
        (tmp_path / "missing", "there is no such folder"),
        (tmp_path / "one" / "1.png", "is a file"),
        (tmp_path / "empty", "no image (the folder is empty)"),
        (tmp_path / "text", "no image (1 passed over: not named like images (e.g. a.txt))"),
        (tmp_path / "one", "only one image"),
        (tmp_path / "part", "1 training image"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            folder(path)
        assert len(str(caught.value).splitlines()) == 1
        assert path is None or str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on_corrupt": "ignore"}, "data.dataset.on_corrupt=ignore: must be fail or skip"),
        ({"max_skipped": -1}, "data.dataset.max_skipped=-1"),
        ({"max_pixels": 0}, "data.dataset.max_pixels=0"),
        ({"max_pixels": 10**9}, "data.dataset.max_pixels=1000000000"),
    ],
)
def test_options_out_of_range(tmp_path, options, said):
    fill(tmp_path, classes())
    with pytest.raises(ValueError, match=re.escape(said)):
        folder(tmp_path, **options)


def break_one(root, kind):
    """Damage bee/004.png; returns what is said of it."""
    path = root / "bee" / "004.png"
    data = path.read_bytes()
    if kind == "zero":
        path.write_bytes(b"")
        return "the file is empty"
    if kind == "text":
        path.write_text("an error page that was saved as an image")
        return "not an image of a known format"
    if kind == "big":
        Image.fromarray(pixels(1, size=40)).save(path)
        return "40 x 40 = 1,600 pixels, above data.dataset.max_pixels=1,000"
    path.write_bytes(data[: len(data) // 2] if kind == "truncated" else data[:60] + bytes(60) + data[120:])
    return ""


@pytest.mark.parametrize("kind", ["zero", "text", "big"])
def test_policy_fail_names_the_file_at_the_start(tmp_path, kind):
    said = break_one(fill(tmp_path, classes()), kind)
    with pytest.raises(ImageError) as caught:
        folder(tmp_path, max_pixels=1000)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'bee' / '004.png'}: {said}")
    assert "data.dataset.on_corrupt=skip" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("kind", ["truncated", "corrupt"])
def test_policy_fail_names_the_file_when_it_is_loaded(tmp_path, kind):
    break_one(fill(tmp_path, classes()), kind)
    train = folder(tmp_path, labels=False).train
    for index, name in enumerate(train.names):
        if name == "bee/004.png":
            with pytest.raises(ImageError, match=r"bee/004\.png: .*; remove or replace it, or .*on_corrupt=skip"):
                train.load(index)
        else:
            train.load(index)


@pytest.mark.parametrize("kind", ["zero", "text", "big", "truncated", "corrupt"])
def test_policy_skip_leaves_it_out_counts_and_lists_it(tmp_path, kind):
    said = break_one(fill(tmp_path, classes()), kind)
    splits = folder(tmp_path, on_corrupt="skip", max_pixels=1000)
    left = {*splits.train.names, *splits.test.names}
    assert left == set(classes()) - {"bee/004.png"}
    assert len(splits.skipped) == 1
    assert splits.skipped[0].startswith(f"{tmp_path / 'bee' / '004.png'}: {said}")
    assert any("1 files cannot be read as images and are skipped" in note for note in splits.notes)
    for images in (splits.train, splits.test):
        for index, name in enumerate(images.names):
            found = images.load(index).permute(1, 2, 0).numpy()
            assert np.array_equal(found, pixels(classes().index(name)))


def test_skipping_is_capped(tmp_path):
    fill(tmp_path, classes())
    for name in classes()[:5]:
        (tmp_path / name).write_bytes(b"")
    assert len(folder(tmp_path, on_corrupt="skip", max_skipped=5).skipped) == 5
    before = list(warnings.filters)
    with pytest.raises(ImageError, match=r"more than data\.dataset\.max_skipped=4") as caught:
        folder(tmp_path, on_corrupt="skip", max_skipped=4)
    assert len(str(caught.value).splitlines()) == 5
    assert warnings.filters == before


def test_no_readable_image(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"no image \(2 cannot be read, e\.g\. .*1\.png"):
        folder(tmp_path, on_corrupt="skip")
    with pytest.raises(ValueError, match=r"1\.png: not an image .* \(2 of 2 files looked into cannot be read"):
        folder(tmp_path)


def test_a_file_that_goes_bad_after_the_start_is_named_under_skip_too(tmp_path):
    splits = folder(fill(tmp_path, classes()), on_corrupt="skip", labels=False)
    (tmp_path / "ape" / "000.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"ape/000\.png: the file is empty .*; it could be read when the run"):
        splits.train.load(0)


def test_empty_files_are_found_beyond_those_looked_into(tmp_path, monkeypatch):
    fill(tmp_path, classes(count=30))
    monkeypatch.setattr(unreadable, "CHECKED", 4)
    opened = []
    real = unreadable.check_header
    monkeypatch.setattr(unreadable, "check_header", lambda path, cap: opened.append(path) or real(path, cap))
    folder(tmp_path)
    assert len(opened) == 4
    (tmp_path / "cow" / "017.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"017\.png: the file is empty"):
        folder(tmp_path)


# Fingerprints.


def change(root, how):
    name = root / "bee" / "004.png"
    if how == "added":
        fill(root, ["bee/new.png"], first=99)
    elif how == "removed":
        name.unlink()
    elif how == "renamed":
        name.rename(root / "bee" / "0041.png")
    elif how == "moved to another class":
        name.rename(root / "cow" / "100.png")
    elif how == "changed":
        Image.fromarray(pixels(99)).save(name)
    elif how == "changed, as long as before":
        data = bytearray(name.read_bytes())
        data[-1] ^= 1
        name.write_bytes(data)
    elif how == "exchanged":
        other = root / "bee" / "005.png"
        (one, two) = name.read_bytes(), other.read_bytes()
        name.write_bytes(two)
        other.write_bytes(one)


@pytest.mark.parametrize(
    "how",
    [
        "added",
        "removed",
        "renamed",
        "moved to another class",
        "changed",
        "changed, as long as before",
        "exchanged",
    ],
)
def test_the_fingerprint_differs(tmp_path, how):
    fill(tmp_path, classes())
    before = folder(tmp_path).fingerprint
    change(tmp_path, how)
    assert folder(tmp_path).fingerprint != before


def test_the_fingerprint_is_that_of_a_copy_made_in_another_order_at_another_time(tmp_path):
    fill(tmp_path / "one", classes())
    for name in reversed(classes()):
        copy = tmp_path / "two" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((tmp_path / "one" / name).read_bytes())
        os.utime(copy, (0, 0))
    assert folder(tmp_path / "one").fingerprint == folder(tmp_path / "two").fingerprint
    assert folder(tmp_path / "one").fingerprint != folder(tmp_path / "one", labels=False).fingerprint


# Packing.


def test_packed_names_are_a_sequence_of_the_names():
    names = ["a", "", "bcd", "é", os.fsdecode(b"\xff"), "z" * 300]
    packed = PackedNames(names)
    assert list(packed) == names
    assert len(packed) == 6
    assert packed[-1] == names[-1]
    assert packed[1:4] == names[1:4]
    assert "bcd" in packed
    assert packed.index("é") == 3
    for index in (6, -7):
        with pytest.raises(IndexError):
            packed[index]
    assert list(pickle.loads(pickle.dumps(packed))) == names
    assert list(PackedNames([])) == []


def test_a_set_travels_to_a_worker(tmp_path):
    train = folder(fill(tmp_path, classes())).train
    arrived = pickle.loads(pickle.dumps(train))
    assert torch.equal(arrived.load(3), train.load(3))
    assert torch.equal(arrived.labels, train.labels)


@pytest.mark.skipif(not MINI.exists(), reason="the real photographs are not on this machine")
def test_real_photographs():
    splits = folder(MINI)
    assert Counter(splits.train.labels.tolist()) == dict.fromkeys(range(10), 200)
    assert len(splits.test) == 500
    assert len(splits.class_names) == 10
    assert len(splits.notes) == 1
    assert splits.train.load(0).shape == (3, 224, 224)
    assert folder(MINI, labels=False).train.labels is None
