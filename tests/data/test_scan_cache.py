"""The list of a folder's files kept between runs: as good as a new one, or not used at all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from simclr_lightning.data import folder
from simclr_lightning.data.disk import listing, scan_cache, unreadable
from simclr_lightning.data.disk.listing import Listing, list_images


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two class folders of six images each, with links; small and fresh as it is, its list is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scan_cache, "STORED_FROM", 1)
    monkeypatch.setattr(scan_cache, "SETTLED", 0)
    root = tmp_path / "images"
    for number in range(12):
        path = root / ("a", "b é 図/deep")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 + number, 4), (number, 0, 0)).save(path)
    (root / ".pool").mkdir()
    Image.new("RGB", (4, 4)).save(root / ".pool/hidden.png")
    (root / "a/link.png").symlink_to("../.pool/hidden.png")
    (root / "a/notes.txt").write_text("x")
    os.link(root / "a/0.png", root / "b é 図/hard.png")
    return root


def cache(root: Path) -> Path:
    return scan_cache.cache_file(str(root))


def fresh(root: Path, monkeypatch: pytest.MonkeyPatch) -> Listing:
    """The listing by a scan, whatever is kept."""
    with monkeypatch.context() as patched:
        patched.setattr(scan_cache, "read", lambda root: None)
        return list_images(root)


def same(one: Listing, two: Listing) -> bool:
    return dataclasses.replace(one, cached=True) == dataclasses.replace(two, cached=True)


def test_the_kept_list_is_that_of_the_scan_and_nothing_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list_images(root)
    assert not first.cached
    on_disk = {str(path.relative_to(root)) for path in root.rglob("*.png") if ".pool" not in path.parts}
    assert set(first.names) == on_disk - {"b é 図/hard.png"}
    assert first.repeated == ("b é 図/hard.png",)

    def refuse(*args: object) -> None:
        raise AssertionError("the folders were read again")

    monkeypatch.setattr(listing, "scan", refuse)
    second = list_images(root)
    assert second.cached
    assert same(first, second)


def add_and_set_the_time_back(root: Path) -> None:
    before = (root / "a").stat()
    (root / "a/new.png").write_bytes(b"x")
    os.utime(root / "a", ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: (root / "a/new.png").write_bytes(b"x"),
    "added deep": lambda root: (root / "b é 図/deep/new.png").write_bytes(b"x"),
    "added, the folder's time set back": add_and_set_the_time_back,
    "removed": lambda root: (root / "a/2.png").unlink(),
    "renamed": lambda root: (root / "a/2.png").rename(root / "a/22.png"),
    "moved": lambda root: (root / "a/2.png").rename(root / "b é 図/2.png"),
    "exchanged for a link": lambda root: [(root / "a/2.png").unlink(), (root / "a/2.png").symlink_to("4.png")],
    "a new folder": lambda root: [(root / "c").mkdir(), (root / "c/1.png").write_bytes(b"x")],
    "a folder hidden": lambda root: (root / "a").rename(root / ".a"),
    "a hidden target gone": lambda root: (root / ".pool/hidden.png").unlink(),
    "a hidden target replaced": lambda root: (root / ".pool/hidden.png").write_bytes(b"xx"),
    "the folder replaced": lambda root: [
        (root / "a").rename(root.parent / "old"),
        (root / "a").mkdir(),
        (root / "a/0.png").write_bytes(b"x"),
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_noticed(root: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list_images(root)
    assert cache(root).exists()
    CHANGES[change](root)
    after = list_images(root)
    assert same(after, fresh(root, monkeypatch))
    assert not same(after, before)


def test_a_folder_that_has_just_changed_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "SETTLED", 60_000_000_000)
    list_images(root)
    assert not cache(root).exists()


def test_a_small_folder_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "STORED_FROM", 14)
    list_images(root)
    assert not cache(root).exists()


def test_a_damaged_file_is_not_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = list_images(root)
    data = cache(root).read_bytes()
    flips = [data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :] for at in range(0, len(data), 41)]
    for damaged in (b"", b"PK", b"x" * 500, data[:-1], data[: len(data) // 2], *flips):
        cache(root).write_bytes(damaged)
        assert same(list_images(root), want)
    monkeypatch.setattr(scan_cache, "VERSION", scan_cache.VERSION + 1)
    cache(root).write_bytes(data)
    assert not list_images(root).cached


def test_a_cache_that_cannot_be_written_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "file"))
    assert same(list_images(root), list_images(root))
    assert not list_images(root).cached


def test_the_fingerprint_is_exact_with_a_kept_list(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unreadable, "CHECKED", 2)  # so that most files are not among the samples
    first, second = folder(root), folder(root)
    assert list_images(root).cached
    assert first.fingerprint == second.fingerprint
    third = folder(root)
    with (root / "a/4.png").open("ab") as file:  # rewritten in place: no folder's time tells
        file.write(b"more")
    assert list_images(root).cached
    assert third.fingerprint != first.fingerprint
    cache(root).unlink()
    assert folder(root).fingerprint == third.fingerprint
