"""In a container a user may have no home folder, or one that cannot be written."""

from __future__ import annotations

import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import OVERRIDES, small_images


def test_every_command_works_without_a_home(
    simclr: Callable[..., int], npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: object) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pics").mkdir()
    for number, image in enumerate(small_images(4)[0]):
        Image.fromarray(image).save(tmp_path / "pics" / f"{number}.png")
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "trainer.max_steps=1", "hydra.run.dir=run") == 0
    with monkeypatch.context() as patch:
        patch.setenv("HOME", "/proc/none")
        assert simclr("train", "ckpt_path=run", "trainer.max_steps=2", "logger=wandb") == 0
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
    assert simclr("evaluate", "run", "protocol=knn") == 0
    assert simclr("search", "run", "pics") == 0
    assert simclr("embed", "run", "pics", "h.npz") == 0
    assert simclr("report", "run") == 0
