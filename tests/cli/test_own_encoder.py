"""An encoder of the user goes through every command in this process; its package is imported only if it is trusted."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import OVERRIDES, small_images
from simclr_lightning import load_encoder
from simclr_lightning.cli import main
from simclr_lightning.views import centre_view

PACKAGE = '''
from torch import nn


class Maps(nn.Module):
    """A feature map; without feature_dim."""

    def __init__(self, width=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return self.layers(x)


class Pair(Maps):
    def forward(self, x):
        return super().forward(x), x


class Bare(nn.Flatten):
    pass


class Half(Maps):
    def __init__(self):
        super().__init__()
        self.half()


class Infinite(Maps):
    def forward(self, x):
        return super().forward(x) / 0


def number():
    return 3
'''
OWN = [word for word in OVERRIDES if not word.startswith("model.")]
Program = Callable[..., int]


def forget() -> None:
    sys.modules.pop("clinets", None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the package clinets, images, and RUN, which trained clinets.Maps(width=6) for two steps."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "clinets.py").write_text(PACKAGE)
    images, labels = small_images(88)
    np.savez(
        folder / "images.npz",
        train_images=images[:64], train_labels=labels[:64], test_images=images[64:], test_labels=labels[64:],
    )  # fmt: skip
    (folder / "images").mkdir()
    for number in range(3):
        Image.fromarray(images[number]).save(folder / "images" / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr(sys, "path", [*sys.path])  # a trusted package of the current folder is added
        words = ("model=custom", "model.encoder._target_=clinets.Maps", "+model.encoder.width=6", "trusted=[clinets]")
        start = ("data.path=images.npz", "trainer.max_steps=2", f"hydra.run.dir={folder / 'RUN'}")
        assert main(["train", *OWN, *words, *start]) == 0
        yield folder
    forget()


@pytest.fixture
def program(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program in the folder of `made`, with a copy of RUN; the package is not imported."""
    forget()
    shutil.copytree(made / "RUN", tmp_path / "RUN")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(made)
    return lambda *words: main([str(word) for word in words])


def test_embed_search_and_export_use_the_trained_weights(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, trust = tmp_path / "RUN", ("--trusted", "clinets")
    embed, search = ("embed", run, "images", tmp_path / "h.npz"), ("search", run, "images")
    for words in (embed, search, ("export", run, tmp_path / "out")):
        assert program(*words) == 1
        assert "add --trusted clinets" in capsys.readouterr().err
        assert "clinets" not in sys.modules
    assert program(*embed, *trust) == 0
    assert program(*search, *trust) == 0
    assert program("export", run, tmp_path / "out", *trust) == 0
    import clinets

    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    net = clinets.Maps(6).eval()
    net.load_state_dict({key: saved[f"encoder.{key}"] for key in net.state_dict()})
    images = torch.from_numpy(small_images(88)[0][:3]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        want = net(centre_view(images, size=8)).mean((2, 3))
        found = load_encoder(tmp_path / "out", trusted=["clinets"])(centre_view(images, size=8))
    assert torch.equal(found, want)
    np.testing.assert_allclose(np.load(tmp_path / "h.npz")["h"], want.numpy(), rtol=1e-5, atol=1e-6)


def test_evaluate_rebuilds_the_untrained_encoder_and_resume_goes_on(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "RUN"
    assert program("evaluate", run, "protocol=[knn]") == 1
    assert "add 'trusted=[clinets]'" in capsys.readouterr().err
    options = ("protocol=[knn]", "accelerator=cpu")
    assert program("evaluate", run, *options, "untrained=true", "trusted=[clinets]") == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["feature_dim"] == 6
    assert found["knn_top1"] == json.loads((run / "summary.json").read_text())["knn_top1"]
    assert 0 <= found["knn_top1_untrained"] <= 1
    assert program("train", f"ckpt_path={run}", "trainer.max_steps=4", "trusted=[clinets]") == 0
    assert json.loads((run / "summary.json").read_text())["steps"] == 4
    assert f"simclr train ckpt_path={run} 'trusted=[clinets]'" in capsys.readouterr().out
    shutil.rmtree(run / "exported")  # as in a run that was stopped
    assert program("evaluate", run, *options, "trusted=[clinets]") == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Pair", "a tuple of 2; return one Tensor"),
        ("Bare", "no parameters to train"),
        ("Half", r"float16 parameters and the images are float32; call encoder.float()"),
        ("Infinite", "NaN or infinity"),
        ("number", "made a int, not a torch.nn.Module"),
    ],
)
def test_an_encoder_that_cannot_be_trained_is_refused_before_its_folder_is_made(
    name: str, message: str, program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("model=custom", f"model.encoder._target_=clinets.{name}", "trusted=[clinets]", "data.path=images.npz")
    assert program("train", *OWN, *words, f"hydra.run.dir={tmp_path / 'new'}") in (1, 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
