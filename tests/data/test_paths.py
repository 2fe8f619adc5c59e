"""A path that is not there: the message names the folder that a relative one was resolved against."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from simclr_lightning.data import Splits, array, folder, imagenet, pack, packed

Program = Callable[..., int]


@pytest.mark.parametrize(
    ("source", "what"), [(folder, "folder"), (packed, "folder"), (imagenet, "folder"), (array, "file")]
)
def test_the_base_of_a_relative_path_is_named(
    source: Callable[[str], Splits], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("img", "data/img", "../img"):
        message = f"data.path={path}: there is no such {what} (looked in {tmp_path})"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            source(path)
    with pytest.raises(ValueError, match=re.escape(f"data.path={tmp_path}/img: there is no such {what}; check the")):
        source(str(tmp_path / "img"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(f"data.path={tmp_path}/img: there is no such {what}; check the")):
        source("~/img")


def test_pack_names_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"img: there is no such folder of images (looked in {tmp_path})")):
        pack(Path("img"), tmp_path / "out")


def test_the_program_prints_it_in_one_line(simclr: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simclr("train", "data=folder", "data.path=img") == 1
    said = capsys.readouterr().err
    assert said == f"error: data.path=img: there is no such folder (looked in {tmp_path})\n"
