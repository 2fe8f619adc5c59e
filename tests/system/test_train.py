"""``simclr train`` in this process: what a run leaves, resuming, refusals."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import OVERRIDES
from simclr_lightning import checkpoint, load_encoder
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.locate import locate_checked
from simclr_lightning.app.runs.run import locked, read_config
from simclr_lightning.app.training import trainer
from simclr_lightning.app.training.build import make_data
from simclr_lightning.app.training.trainer import KeepSignals
from simclr_lightning.optim import scaled_lr
from simclr_lightning.stopping import STOP
from simclr_lightning.views import ViewRecipe, recipe

CONTRACT = {
    "status", "steps", "epochs", "images_seen", "images_per_second", "loss", "contrastive_accuracy",
    "contrastive_entropy", "knn_top1", "knn_top1_untrained", "knn_top1_pixels", "linear_top1", "temperature",
    "global_batch_size", "devices", "seed",
}  # fmt: skip
FILES = (
    ".hydra/config.yaml", ".hydra/overrides.yaml", "checkpoints/last.ckpt", "checkpoints/previous.ckpt",
    "checkpoints/best.ckpt", "metrics.csv", "summary.json", "train.log", "views.png", "neighbours.png", "embedding.png",
    "exported/encoder.safetensors", "exported/card.md",
)  # fmt: skip

Program = Callable[..., int]


def summary(run: Path) -> dict[str, object]:
    return json.loads((run / "summary.json").read_text())


def test_a_run_leaves_what_the_contract_says(simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz = npz.rename(npz.with_name("a${now:%Y} ${seed}.npz"))  # in a path $ is a letter
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run") == 0
    run = Path("run")
    for name in FILES:
        assert (run / name).stat().st_size > 0, name
    found = summary(run)
    assert found.keys() >= CONTRACT
    assert (found["status"], found["steps"], found["epochs"], found["images_seen"]) == ("finished", 8, 2, 128)
    assert all(0 <= found[key] <= 1 for key in found if key.startswith(("knn", "linear")))
    assert found["knn_top1_pixels"] > 0.9  # the colour tells the class
    assert found["held_out_score"] == found["online_knn_top1"]
    said = capsys.readouterr().out
    for command in ("simclr train ckpt_path=run trainer.max_epochs=N", "simclr evaluate run", "simclr embed run"):
        assert command in said
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float([row["train/loss"] for row in rows if row.get("train/loss")][-1]) == pytest.approx(found["loss"])
    saved = checkpoint.load(run / "checkpoints" / "last.ckpt")["state_dict"]
    exported = load_encoder(run)
    for name, value in exported.state_dict().items():
        assert torch.equal(value, saved[f"encoder.{name}"]), name


def test_a_stopped_run_goes_on_in_its_folder_and_ends_like_an_uninterrupted_one(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*OVERRIDES, f"data.path={npz}")
    # Measured before it started, as the part is not: nothing of the run depends on that.
    assert simclr("train", *words, "hydra.run.dir=whole", "preflight=true") == 0
    assert "pre-flight: data" in Path("whole/train.log").read_text()

    # The schedule is the whole run's, so the part is made by a signal after the first epoch.
    class Interrupted(KeepSignals):
        def on_train_epoch_start(self, trainer: object, pl_module: object) -> None:
            if trainer.current_epoch == 1:
                STOP.received.append(15)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "KeepSignals", Interrupted)
        assert simclr("train", *words, "hydra.run.dir=outputs/part") == 143
    assert summary(Path("outputs/part"))["status"] == "stopped"
    assert (summary(Path("outputs/part"))["steps"], summary(Path("outputs/part"))["images_seen"]) == (5, 80)
    assert simclr("train", "ckpt_path=last") == 0
    whole, part = summary(Path("whole")), summary(Path("outputs/part"))
    assert {"online_rankme", "online_linear_top1"} < whole.keys()
    for key in whole.keys() - {"images_per_second", "seconds"}:
        assert whole[key] == part[key], key
    states = [checkpoint.load(Path(run) / "checkpoints/last.ckpt")["state_dict"] for run in ("whole", "outputs/part")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    capsys.readouterr()
    assert simclr("train", "ckpt_path=last") == 1
    assert "no unfinished run" in capsys.readouterr().err
    assert simclr("train", "ckpt_path=outputs/part") == 0
    assert "is finished" in capsys.readouterr().out
    assert simclr("train", "ckpt_path=outputs/part", "trainer.max_epochs=3") == 0
    assert summary(Path("outputs/part"))["steps"] == 12
    note = re.search(r"goes on at step 8 of 12: .* is (\S+) at the next step and (\S+) at the", capsys.readouterr().out)
    cfg = read_config(Path("outputs/part"))
    peak, warmup = scaled_lr(cfg.optimizer.lr, 16, cfg.schedule.rule), round(4 * cfg.schedule.warmup_epochs)
    rates = [peak * (1 + math.cos(math.pi * (step - warmup) / (12 - warmup))) / 2 for step in (8, 11)]
    assert [float(text) for text in note.groups()] == pytest.approx(rates, rel=0.01)


def test_images_that_are_not_there_cost_nothing(simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*OVERRIDES[1:], "trainer.max_steps=2", "hydra.run.dir=run")
    for name in ("array", "folder", "packed"):
        assert simclr("train", f"data={name}", *words, "data.path=nope.npz") == 1
        assert "data.path=nope.npz: " in capsys.readouterr().err
    assert not Path("run").exists()
    assert simclr("train", "data=array", *words, f"data.path={npz}") == 0
    npz.unlink()
    before = summary(Path("run"))
    assert simclr("train", "ckpt_path=run", "trainer.max_steps=4") == 1
    assert summary(Path("run")) == before
    assert simclr("train", "ckpt_path=run") == 0  # it is finished


@pytest.mark.parametrize("text", ["data: &a [*a]\n", "data: " + "[" * 5000])
def test_a_saved_configuration_without_an_end_is_no_runs(text: str, tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path)


def test_resuming_with_another_configuration_or_other_images_is_refused(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "trainer.max_steps=2") == 0
    for word in ("data.batch_size=8", "seed=1", "loss.temperature=0.3", "schedule.rule=sqrt"):
        assert simclr("train", "ckpt_path=run", word) != 0
        said = capsys.readouterr().err
        assert "another configuration" in said, said
        assert word.split("=")[0].split(".")[0] in said
    saved = Path("run/.hydra/config.yaml")
    older = OmegaConf.load(saved)
    for part, key in ((older, "tf32"), (older, "ema"), (older.callbacks, "hardness")):
        part.pop(key)  # as a run that was saved before there were such keys
    OmegaConf.save(older, saved)
    assert locate_checked(["ckpt_path=run", "trainer.max_steps=4"]).cfg.callbacks.hardness.every_n_steps == 50
    for word in ("ema=0.9", "tf32=false", "seed=1", "optimizer.lr=0.5"):
        with pytest.raises(UserError, match="another configuration"):
            locate_checked(["ckpt_path=run", word])
    for override in ("callbacks.hardness.every_n_steps=7", "data.num_workers=1", "logger=csv", "data.resident=false"):
        locate_checked(["ckpt_path=run", "trainer.max_steps=4", override])  # changes no mathematics
    for override in ("optimizer=sgd", "model.projector.layers=1", "model.encoder.width=0.25", "model=resnet18"):
        with pytest.raises(UserError, match="no state for that") as refused:
            locate_checked(["ckpt_path=run", "force=all", override])
        assert ("model.weights=" in str(refused.value)) == (override in ("optimizer=sgd", "model.projector.layers=1"))
    import numpy as np

    arrays = dict(np.load(npz))
    arrays["train_images"][0] ^= 1
    np.savez(npz, **arrays)
    for force in ("false", "true"):
        assert simclr("train", "ckpt_path=run", "trainer.max_steps=4", f"force={force}") != 0
        assert "images differ" in capsys.readouterr().err
    assert simclr("train", "ckpt_path=run", "trainer.max_steps=4", "force=images") == 0


def test_changed_numbers_of_optimizer_and_schedule_take_effect_and_are_recorded(simclr: Program, npz: Path) -> None:
    words = (*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "schedule.rule=constant", "schedule.warmup_epochs=0")
    assert simclr("train", *words, "optimizer=sgd", "optimizer.lr=0.001", "callbacks.metrics.every_n_steps=1") == 0
    more = ("optimizer.lr=0.01", "optimizer.momentum=0.5", "optimizer.weight_decay=0.125", "trainer.max_epochs=4")
    assert simclr("train", "ckpt_path=run", *more, "force=true") == 0
    with Path("run/metrics.csv").open() as file:
        rates = {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file) if row.get("lr")}
    total = summary(Path("run"))["steps"]
    for step in range(total // 2 + 1, total + 1):  # the rate of the next step: a cosine from 0.01 over the whole run
        assert rates[step] == pytest.approx(0.01 * (1 + math.cos(math.pi * step / total)) / 2, rel=1e-5), step
    saved = checkpoint.load(Path("run/checkpoints/last.ckpt"))
    groups = saved["optimizer_states"][0]["param_groups"]
    assert {(group["momentum"], group["initial_lr"]) for group in groups} == {(0.5, 0.01)}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.125}  # BatchNorm and biases have none
    assert set(saved["lr_schedulers"][0]["base_lrs"]) == {0.01}
    assert OmegaConf.load("run/.hydra/config.yaml").optimizer.momentum == 0.5


def test_keys_of_the_runs_own_groups_can_be_given_at_resume(simclr: Program, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(40):
        Image.new("RGB", (12, 12), (6 * number, 0, 0)).save(tmp_path / f"{number:02}.png")
    folder = ("data=folder", f"data.path={tmp_path}", "data.num_workers=0", *OVERRIDES[1:], "hydra.run.dir=../run")
    assert simclr("train", *folder, "trainer.max_steps=2") == 0
    assert simclr("train", "ckpt_path=../run", "data.dataset.on_corrupt=skip", "trainer.max_steps=3") == 0
    assert OmegaConf.load("../run/.hydra/config.yaml").data.dataset.on_corrupt == "skip"
    assert OmegaConf.load("../run/.hydra/config.yaml").data.batch_size == 16


def test_the_exact_number_of_steps_even_below_an_epoch(simclr: Program, npz: Path) -> None:
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "trainer.max_steps=3") == 0
    found = summary(Path("run"))
    assert (found["status"], found["steps"], found["epochs"]) == ("finished", 3, 0.75)
    assert found["knn_top1"] is not None
    assert simclr("train", "ckpt_path=run", "trainer.max_steps=7") == 0
    assert summary(Path("run"))["steps"] == 7
    Path("run/summary.json").write_text('{"status": "finished"}')
    assert simclr("train", "ckpt_path=run") == 0  # the checkpoint tells
    assert summary(Path("run"))["steps"] == 7


def test_without_labels_scores_are_null_and_the_rest_is_there(
    simclr: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    from conftest import small_images

    np.savez(tmp_path / "plain.npz", train_images=small_images(40)[0])
    words = (*OVERRIDES, "data.path=plain.npz", "hydra.run.dir=run")
    assert simclr("train", *words, "select=knn_top1") == 1
    assert "select=knn_top1 needs labels" in capsys.readouterr().err
    assert simclr("train", *words, "select=alignment") == 0
    found = summary(Path("run"))
    assert (found["status"], found["select"]) == ("finished", "alignment")
    assert found["held_out_score"] == -found["online_alignment"]
    assert [found[key] for key in sorted(found) if "top1" in key] == [None] * 4
    assert "online/held_out_loss" in (Path("run") / "metrics.csv").read_text()
    for name in FILES:
        assert (Path("run") / name).exists(), name


def test_two_runs_in_one_folder(simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run")
    with locked(Path("run")):
        assert simclr("train", *words) != 0
    assert "another process" in capsys.readouterr().err
    assert simclr("train", *words, "trainer.max_steps=1") == 0
    before = (Path("run") / "summary.json").read_bytes()
    assert simclr("train", *words) != 0
    assert "already contains a run" in capsys.readouterr().err
    assert (Path("run") / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("data.batch_size=65", "65"),
        ("data.batch_size=1", "batch_size"),
        ("loss.temprature=0.5", "loss.temperature"),
        ("loss.temperature=-1", "temperature"),
        ("model=resnet51", "resnet50"),
        ("ckpt_path=nowhere", "nowhere"),
        ("ckpt_path=http://host/last.ckpt", "not supported"),
        ("model.weights=missing.pt", "missing.pt"),
        ("views.area=[0,1]", "area"),
        ("trainer.max_epochs=0", "max_epochs"),
        ("micro_batch_size=5", "use 4"),
        ("trainer.devices=3", "divide"),
    ],
)
def test_a_mistake_is_said_in_few_lines_and_nothing_is_left(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str], word: str, says: str
) -> None:
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", word) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert said.count("\n") <= 5
    assert not (Path("run") / "checkpoints").exists()


def test_a_dry_run_trains_nothing_and_makes_nothing(simclr: Program, npz: Path) -> None:
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "dry_run=true") == 0
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["simclr", "simclr_cifar", "crop_flip", "none"])
def test_the_views_of_a_run_are_those_of_their_name(name: str) -> None:
    data = make_data(compose(["experiment=null", f"views={name}"]))
    assert isinstance(data.recipe, ViewRecipe)
    assert data.recipe == recipe(name)
    data.view_pairs(torch.tensor([0]))  # every operation, the blur too


def test_a_path_in_any_language(simclr: Program, npz: Path) -> None:
    folder = Path("my images, (2) ~ ü=é 图")
    folder.mkdir()
    path = npz.rename(folder / "a=b.npz")
    run = "runs/été, [1]=x"
    assert simclr("train", *OVERRIDES, f"data.path={path}", f"hydra.run.dir={run}", "trainer.max_steps=1") == 0
    assert simclr("train", f"ckpt_path={run}", "trainer.max_steps=2") == 0
    assert summary(Path(run))["steps"] == 2


def test_evaluate_gives_the_scores_of_the_run(simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "trainer.max_steps=4") == 0
    assert simclr("evaluate", "run") == 0
    found = json.loads(Path("run/evaluation.json").read_text())
    assert found["knn_top1"] == summary(Path("run"))["knn_top1"]
    assert found["linear_top1"] == summary(Path("run"))["linear_top1"]
    assert simclr("evaluate", "run", "protocol=[knn,lineer]") == 2
    assert "protocols are" in capsys.readouterr().err
