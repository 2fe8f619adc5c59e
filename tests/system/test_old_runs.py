"""Today's commands read and resume the two run folders in `old_runs`, which commit fd88f64 wrote.

`finished` trained 2 epochs. `stopped` is the same run with 3 epochs, ended by SIGTERM after 6 of its 12 steps.
`.hydra/overrides.yaml` holds their overrides. Pictures, logs and the other checkpoints were removed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from conftest import small_images
from simclr_lightning import resnet
from simclr_lightning.views import centre_view

OLD = Path(__file__).with_name("old_runs")
ARITHMETIC = "f28be282e9ecb088e22b98252d190cda12eb0bac4be30e15bf04a987ebc6d854"  # of the machine that trained them
Program = Callable[..., int]


@pytest.fixture
def old(simclr: Program, tmp_path: Path) -> Program:
    """The program in a folder that holds copies of the old runs and of their images."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    return simclr


def summary(run: str) -> dict[str, object]:
    return json.loads(Path(run, "summary.json").read_text())


def weights(run: Path | str) -> dict[str, Tensor]:
    return torch.load(Path(run) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def train_anew(program: Program, like: str) -> dict[str, Tensor]:
    """Train a run with the overrides of the old run `like`, without interruption; return its weights."""
    overrides = yaml.safe_load(Path(like, ".hydra/overrides.yaml").read_text())
    assert program("train", *overrides, "hydra.run.dir=anew") == 0
    return weights("anew")


def arithmetic() -> str:
    """Return the SHA-256 of the gradients of a small torch network: kernels that round differently change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for cin, cout in ((3, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)):
            stride = 2 if cout > max(cin, 2) else 1
            layers += [nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        for _ in range(3):
            z = nn.functional.normalize(net(torch.rand(32, 3, 8, 8)), dim=1)
            (z @ z.T / 0.5).logsumexp(1).mean().backward()
    return hashlib.sha256(b"".join(p.grad.numpy().tobytes() for p in net.parameters())).hexdigest()


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Bit for bit where torch rounds as on the machine of the old runs; else within the rounding of 12 steps.

    Other numbers of threads and other instruction sets changed the weights by 2e-6 at most.
    """
    exact = arithmetic() == ARITHMETIC
    torch.testing.assert_close(got, want, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)


def test_a_finished_run_of_old_is_left_alone_until_it_is_given_more_epochs(
    old: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    before = summary("finished")
    assert old("train", "ckpt_path=finished") == 0
    assert "is finished" in capsys.readouterr().out
    assert summary("finished") == before
    assert old("train", "ckpt_path=finished", "trainer.max_epochs=4") == 0
    after = summary("finished")
    assert (before["steps"], after["steps"], after["images_seen"], after["status"]) == (8, 16, 256, "finished")
    with Path("finished/metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [4, 8, 12, 16]


def test_a_stopped_run_of_old_ends_in_the_weights_of_an_uninterrupted_run_of_today(old: Program) -> None:
    assert old("train", "ckpt_path=stopped") == 0
    resumed = weights("stopped")
    assert_same(resumed, train_anew(old, "stopped"))
    found, anew = summary("stopped"), summary("anew")
    assert (found["status"], found["steps"], found["images_seen"]) == ("finished", 12, 192)
    for key in ("epochs", "knn_top1", "linear_top1", "knn_top1_untrained", "knn_top1_pixels"):
        assert found[key] == anew[key], key
    assert found["loss"] == pytest.approx(anew["loss"], abs=1e-4)


def test_the_same_overrides_train_the_same_weights_as_then(old: Program) -> None:
    assert_same(train_anew(old, "finished"), weights(OLD / "finished"))


def test_an_old_run_is_evaluated_to_the_scores_that_it_reported(old: Program) -> None:
    assert old("evaluate", "finished") == 0
    found, then = json.loads(Path("finished/evaluation.json").read_text()), summary("finished")
    assert (found["knn_top1"], found["linear_top1"]) == (then["knn_top1"], then["linear_top1"])
    assert old("evaluate", "stopped") == 0


def test_an_old_run_embeds_images_as_its_saved_weights_do(old: Program) -> None:
    images = small_images(5, seed=1)[0]
    Path("images").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(f"images/{index}.png")
    assert old("embed", "finished", "images", "out.npz") == 0
    encoder = resnet(10, 0.03125, "cifar").eval()
    saved = weights(OLD / "finished")
    encoder.load_state_dict({name: saved[f"encoder.{name}"] for name in encoder.state_dict()})
    with torch.no_grad():
        want = encoder(centre_view(torch.from_numpy(images).permute(0, 3, 1, 2), size=8)).numpy()
    found = np.load("out.npz", allow_pickle=False)
    assert found["files"].tolist() == [f"{index}.png" for index in range(5)]
    np.testing.assert_allclose(found["h"], want, rtol=1e-5, atol=1e-6)


def test_old_runs_are_reported_with_the_figures_of_their_summaries(old: Program) -> None:
    assert old("report", ".") == 0
    with Path("runs.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"finished", "stopped"}
    for run, row in rows.items():
        for key in ("status", "steps", "seed", "global_batch_size", "temperature"):
            assert row[key] == str(summary(run)[key]), (run, key)
    assert float(rows["finished"]["linear_top1"]) == summary("finished")["linear_top1"]
    assert Path("report.md").stat().st_size
    assert Path("report.html").stat().st_size


def test_an_old_run_is_exported_with_the_weights_of_its_checkpoint(old: Program) -> None:
    assert old("export", "finished", "out", "--format", "safetensors") == 0
    (path,) = Path("out").glob("*.safetensors")
    saved = {f"encoder.{name}": value for name, value in load_file(path).items()}
    want = {name: value for name, value in weights(OLD / "finished").items() if name.startswith("encoder.")}
    torch.testing.assert_close(saved, want, rtol=0, atol=0)
