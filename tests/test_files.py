"""Files that appear complete or not at all, and what killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_lightning import files


def test_files_appear_together_or_none_of_them(tmp_path: Path) -> None:
    with files.together(tmp_path / "new" / "deep", "x") as fresh:
        (fresh / "a").write_text("1")
        (fresh / "b").write_text("1")
        assert not (tmp_path / "new").exists()
    assert {path.name: path.read_text() for path in (tmp_path / "new/deep").iterdir()} == {"a": "1", "b": "1"}
    (tmp_path / "c").mkdir()  # a folder that prevents the file c

    def fill() -> None:
        with files.together(tmp_path, "x") as fresh:
            for name in "abc":
                (fresh / name).write_text("2")

    with pytest.raises(IsADirectoryError):
        fill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "new"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for pid in (int(dead.stdout), os.getppid(), os.getpid()):  # the last: of an earlier process with this id
        (tmp_path / f".x.{pid}.tmp").mkdir()
        (tmp_path / f".x.{pid}.tmp" / "half").touch()
    with files.together(tmp_path, "x") as fresh:
        assert sorted(tmp_path.iterdir()) == sorted([fresh, tmp_path / f".x.{os.getppid()}.tmp"])
        assert not list(fresh.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == [f".x.{os.getppid()}.tmp"]


def test_a_file_in_the_place_of_a_folder_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file'$"):
        files.check_writable(tmp_path / "file" / "folder" / "out")
