"""A run is resumed and evaluated from any folder, however its paths were given when it began."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from conftest import OVERRIDES
from simclr_lightning.app.config.plain import diff, with_absolute_paths
from simclr_lightning.run_folder import read_summary

Program = Callable[..., int]


def saved(run: Path) -> dict[str, dict[str, str]]:
    return yaml.safe_load((run / ".hydra/config.yaml").read_text())


def test_a_run_with_relative_paths_goes_on_from_another_folder(
    simclr: Program, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*OVERRIDES, "trainer.max_steps=1", "hydra.run.dir=run")
    assert simclr("train", *words, f"data.path={npz.name}") == 0
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert saved(run)["data"]["path"] == str(npz)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert simclr("train", "ckpt_path=../run", "trainer.max_steps=2") == 0
    assert simclr("train", "ckpt_path=../run", "trainer.max_steps=3", f"data.path=../{npz.name}") == 0
    assert read_summary(run)["steps"] == 3
    assert saved(run)["data"]["path"] == str(npz)
    assert simclr("evaluate", "../run", "protocol=knn") == 0
    config = run / ".hydra/config.yaml"
    config.write_text(config.read_text().replace(str(npz), npz.name))  # as older runs are
    capsys.readouterr()
    for command in (("train", "ckpt_path=../run", "trainer.max_steps=4"), ("evaluate", "../run", "protocol=knn")):
        assert simclr(*command) == 1
        assert f"data.path={npz.name}: there is no such file (looked in {elsewhere})" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert simclr("evaluate", "run", "protocol=knn") == 0
    assert simclr("train", "ckpt_path=run", "trainer.max_steps=4", f"data.path={npz}") == 0
    assert saved(run)["data"]["path"] == str(npz)


def test_which_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("here", "imagenet"):
        Path(name).mkdir()

    def made(path: str | None, weights: str | None, source: str = "folder") -> tuple[str | None, str | None]:
        target = {"_target_": f"simclr_lightning.data.{source}"}
        found = with_absolute_paths({"data": {"path": path, "dataset": target}, "model": {"weights": weights}})
        return found["data"]["path"], found["model"]["weights"]

    here = str(tmp_path / "here")
    assert made("here", "./here/../here") == (here, here)
    assert made("~/here", "imagenet") == (here, "imagenet")
    assert made("owner/name", "gone.pt") == ("owner/name", "gone.pt")
    assert made("new", None, "cifar10") == (str(tmp_path / "new"), None)
    assert made(None, None) == (None, None)
    Path("link").symlink_to("here")
    paths = [{"data": {"path": path}} for path in ("here", here, "link", f"{here}/")]
    assert all(diff(one, other) == {} for one in paths for other in paths)
    assert diff(paths[0], {"data": {"path": "other"}}) == {"data.path": ("here", "other")}
