"""``simclr evaluate`` in this process: every protocol, the images used for choices, the cache, and refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from conftest import OVERRIDES, SmallEncoder, small_data, small_images
from simclr_lightning import checkpoint, load_encoder, pictures
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.plain import to_plain
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.encoder import encoder_of, start_of
from simclr_lightning.app.training.build import build as make_parts
from simclr_lightning.cli import evaluate, main
from simclr_lightning.cli.evaluate import configure
from simclr_lightning.data import images
from simclr_lightning.encoders import build
from simclr_lightning.evaluation.protocols import features, sgd
from simclr_lightning.evaluation.protocols.published import published
from simclr_lightning.views import centre_view

Program = Callable[..., int]
QUICK = (
    "linear.epochs=2", "finetune.epochs=1", "finetune.lr=[0.01,0.05]", "semi.fractions=[0.1,0.25]",
    "semi.epochs=[2,1]", "knn.k=5",
)  # fmt: skip
EVERY = "protocol=[knn,lbfgs,linear,semi,finetune]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images.npz (one class per color, some mislabeled) and a run of two steps on them."""
    folder = tmp_path_factory.mktemp("trained")
    images, labels = small_images(88)
    labels[::7] = (labels[::7] + 1) % 3  # so that values of l2 differ in their scores
    np.savez(
        folder / "images.npz",
        train_images=images[:64], train_labels=labels[:64], test_images=images[64:], test_labels=labels[64:],
    )  # fmt: skip
    overrides = (
        *OVERRIDES,
        f"data.path={folder / 'images.npz'}",
        f"hydra.run.dir={folder / 'run'}",
        "trainer.max_steps=2",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert main(["train", *overrides]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, with the same path of images."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return found


def test_every_protocol_in_one_command(simclr: Program, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "exported/encoder.safetensors").read_bytes()
    assert simclr("evaluate", run, EVERY, *QUICK, "seeds=[0,1]", "untrained=true") == 0
    found = result(run)
    keys = ("knn", "knn_weighted", "linear", "linear_sgd", "semi_10pct", "semi_25pct", "finetune")
    for key in keys:
        assert 0 <= found[f"{key}_low"] <= found[f"{key}_top1"] <= found[f"{key}_high"] <= 1, key
        assert 0 <= found[f"{key}_top1_untrained"] <= 1
    assert all(not isinstance(value, dict) for value in found.values())
    for key in ("linear_sgd", "semi_10pct", "semi_25pct", "finetune"):
        assert found[f"{key}_top1"] == pytest.approx(np.mean(found[f"{key}_top1_seeds"]))
    assert found["linear_l2"] > 0
    assert found["finetune_lr"] in (0.01, 0.05)
    assert found["linear_sgd_lr"] == 0.1
    assert (found["train_images"], found["test_images"], found["classes"], found["size"]) == (64, 24, 3, 8)
    assert (run / "exported/encoder.safetensors").read_bytes() == before
    for name in ("confusion.png", "per_class.png"):
        with Image.open(run / name) as picture:
            assert picture.size[0] > 300
    for share, each in (("10", 2), ("25", 5)):
        for seed in (0, 1):
            with (run / f"subset_{share}pct_seed{seed}.csv").open() as file:
                rows = list(csv.DictReader(file))
            assert set(Counter(row["class"] for row in rows).values()) == {each}
            assert len({row["file"] for row in rows}) == 3 * each == found[f"semi_{share}pct_images"]
    said = capsys.readouterr().out
    assert "train: 64 images in 3 classes" in said  # the images, before any score
    assert "test: 24 images in 3 classes" in said
    assert "fine-tuning, all" in said
    assert "untrained" in said


def test_nothing_is_chosen_on_test(simclr: Program, trained: Path, run: Path) -> None:
    """With all labels of test exchanged, the chosen values are the same, and the scores differ."""
    overrides = ("protocol=[knn,lbfgs,finetune]", *QUICK)
    assert simclr("evaluate", run, *overrides) == 0
    right = result(run)
    arrays = dict(np.load(trained / "images.npz"))
    arrays["test_labels"] = (arrays["test_labels"] + 1) % 3
    np.savez("other.npz", **arrays)
    assert simclr("evaluate", run, *overrides, "data=array", "data.path=other.npz") == 0
    wrong = result(run)
    for key in right:
        if key.endswith(("_l2", "_lr", "_held_out_top1")):
            assert right[key] == wrong[key], key
    assert right["knn_top1"] > 0.6 > wrong["knn_top1"]
    assert right["linear_top1"] != wrong["linear_top1"]
    assert simclr("evaluate", run, "select_on=test") == 2


def test_features_are_cached_and_read_again(simclr: Program, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    extract = features.extract
    monkeypatch.setattr(features, "extract", lambda *a, **k: (calls.append(1), extract(*a, **k))[1])
    override = "protocol=[knn,lbfgs]"
    scores = []
    for overrides, made in (
        (("cache=false",), 2),
        ((), 2),
        ((), 0),
        (("knn.k=3",), 0),
        (("views.size=10",), 2),
    ):
        calls.clear()
        assert simclr("evaluate", run, override, "knn.k=5", *overrides) == 0
        assert len(calls) == made, overrides
        assert (run / "features").exists() == (overrides != ("cache=false",))
        scores.append({key: value for key, value in result(run).items() if not key.endswith("seconds")})
    assert scores[0] == scores[1] == scores[2]

    files = sorted((run / "features").iterdir())
    h = np.load(next(path for path in files if path.match("test-*.npy")))
    assert h.shape == (24, load_encoder(run).feature_dim)


def test_other_weights_other_data_and_damage_miss_the_cache(
    simclr: Program, trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    extract = features.extract
    monkeypatch.setattr(features, "extract", lambda *a, **k: (calls.append(1), extract(*a, **k))[1])
    data = small_data()
    encoder = build({"factory": "resnet", "depth": 10, "width": 0.125, "stem": "cifar"}).eval()
    maker = features.Extractor([torch.device("cpu")], cache=run / "features", report=print)

    def made() -> int:
        calls.clear()
        features.features(encoder, data, maker)
        return len(calls)

    assert (made(), made()) == (2, 0)
    with torch.no_grad():
        encoder.bn1.running_mean[0] += 1e-3  # not a parameter, but part of the fingerprint
    assert (made(), made()) == (2, 0)
    encoder.set_normalisation([0.5] * 3, [0.2] * 3)  # not in the state dict, but part of the fingerprint
    assert (made(), made()) == (2, 0)
    data.splits = replace(data.load(), identity="e" * 32)
    assert (made(), made()) == (2, 0)
    good = features.features(encoder, data, maker)
    newest = sorted((run / "features").glob("*.npy"), key=lambda path: path.stat().st_mtime_ns)[-2:]
    content = newest[0].read_bytes()
    for torn in (content[:-3], content[:40], b"", content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        newest[0].write_bytes(torn)
        capsys.readouterr()
        assert made() == 1
        assert "extracted again" in capsys.readouterr().out
        again = features.features(encoder, data, maker)
        assert torch.equal(again.bank_h, good.bank_h)
        assert torch.equal(again.test_h, good.test_h)
    newest[0].write_bytes(newest[1].read_bytes())  # features of other images under this name
    assert made() == 1
    assert not list((run / "features").glob(".*"))


def test_files_changed_in_place_miss_the_cache(tmp_path: Path) -> None:
    image = Image.fromarray(small_images(1)[0][0])
    image.save(tmp_path / "a.png")
    images = features.FolderImages(tmp_path, ["a.png"])
    before = features.file_times(images)
    import os

    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert not torch.equal(before, features.file_times(images))


def test_several_devices_give_the_same_features_as_one() -> None:
    torch.manual_seed(0)
    encoder, data, cpu = SmallEncoder().eval(), small_data(), torch.device("cpu")
    done: list[int] = []
    one = features.features(encoder, data, features.Extractor([cpu]))
    three = features.features(encoder, data, features.Extractor([cpu] * 3, after_batch=done.append))
    torch.testing.assert_close(three.bank_h, one.bank_h, atol=1e-6, rtol=1e-6)
    assert torch.equal(three.held_out_y, one.held_out_y)
    assert sum(done) == 70 + 24
    parts = features.labelled_parts(data.load())
    assert parts is not None
    x = centre_view(data.load().train.tensor[parts.held_out], size=8)
    torch.testing.assert_close(one.held_out_h, encoder(x).detach(), atol=1e-6, rtol=1e-6)
    assert not set(parts.bank.tolist()) & set(parts.held_out.tolist())


def test_ctrl_c_and_a_crash_leave_the_older_result_unchanged(
    simclr: Program, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("evaluate", run, "protocol=knn", "knn.k=5") == 0
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}

    def interrupt(*a: object, **k: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sgd, "fit_classifier", interrupt)
    assert simclr("evaluate", run, "protocol=[knn,linear]", "knn.k=7") == 130
    monkeypatch.setattr(pictures, "per_class", interrupt)  # after other files are written
    assert simclr("evaluate", run, "protocol=knn", "knn.k=7") == 130
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert not list(run.glob(".evaluation*"))
    assert "interrupted" in capsys.readouterr().err


def test_transfer_has_one_line_per_data_set(
    simclr: Program, trained: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = small_images(60, seed=4)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = Path(f"my folder, (1)/{'abc'[label]}/{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    shutil.copy(trained / "images.npz", "${seed}.npz")  # in a path $ is literal
    overrides = ("transfer=[array,folder]", "paths.array=${seed}.npz", "paths.folder=my folder, (1)")
    assert simclr("evaluate", run, *overrides) == 0
    found = result(run)
    assert {key for key in found if key.endswith("_top1") and "held" not in key} == {
        "transfer_array_top1", "transfer_folder_top1",
    }  # fmt: skip
    assert found["transfer_folder_top1"] > 0.5
    assert simclr("evaluate", run, "protocol=lbfgs", "data=array", "data.path=${seed}.npz") == 0
    assert result(run)["linear_top1"] == found["transfer_array_top1"]  # the same data under another name
    capsys.readouterr()
    assert simclr("evaluate", run, "transfer=[array,folder]") == 2
    assert "paths.array=FILE.npz" in capsys.readouterr().err


def test_a_torchvision_state_dict(simclr: Program, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), "theirs.pth")
    overrides = ("model=resnet18", "model.encoder.stem=imagenet", "views.size=32", "data=array")
    cfg = configure(Path("theirs.pth"), [*overrides, f"data.path={trained / 'images.npz'}"])
    x = torch.rand(2, 3, 32, 32)
    theirs.fc = torch.nn.Identity()
    torch.testing.assert_close(encoder_of(Path("theirs.pth"), cfg)(x), theirs(x))
    assert simclr("evaluate", "theirs.pth", *overrides, f"data.path={trained / 'images.npz'}", "protocol=knn") == 0
    assert result(Path())["feature_dim"] == 512
    assert simclr("evaluate", "theirs.pth", "data=photos") == 2
    assert "model=resnet50" in capsys.readouterr().err
    Path("empty").mkdir()
    for place, says in (("nowhere.pth", "nowhere.pth does not exist"), ("empty", "holds no encoder.safetensors")):
        assert simclr("evaluate", place, *overrides, f"data.path={trained / 'images.npz'}") == 1
        assert says in capsys.readouterr().err


def test_a_run_that_has_not_finished(simclr: Program, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / ".hydra/hydra.yaml").write_text("runtime: {choices: {data: folder}}")  # the hydra node is ignored
    assert simclr("evaluate", run, "knn.k=5") == 0
    finished = result(run)
    shutil.rmtree(run / "exported")
    assert simclr("evaluate", run, "knn.k=5", "cache=false") == 0
    same = {key: value for key, value in result(run).items() if not key.endswith("seconds")}
    assert same == {key: finished[key] for key in same}
    last = run / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    saved = run / ".hydra/config.yaml"
    usual = saved.read_text()
    saved.write_text(
        usual.replace("simclr_lightning.optim.LARS", "torch.optim.NAdam")
    )  # not allowed, and not instantiated here
    older = encoder_of(run, configure(run, [])).state_dict()
    assert "damaged" in capsys.readouterr().out
    saved.write_text(usual.replace("simclr_lightning.encoders.resnet", "os.system"))
    with pytest.raises(UserError, match=r"encoder\._target_=os\.system"):
        encoder_of(run, configure(run, []))
    config = yaml.safe_load(usual)
    del config["model"]["encoder"]
    saved.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"config\.yaml is not a run's configuration: it lacks model\.encoder"):
        encoder_of(run, configure(run, []))
    saved.write_text(usual)
    capsys.readouterr()
    want = checkpoint.load(run / "checkpoints/previous.ckpt")["state_dict"]
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        make_parts(compose([*OVERRIDES, "data.path=any.npz", f"model.weights={last}"]))
    assert all(torch.equal(value, want[f"encoder.{name}"]) for name, value in older.items())
    begun = make_parts(compose([*OVERRIDES, "data.path=any.npz", f"model.weights={run}"])).module.encoder
    assert all(torch.equal(value, want[f"encoder.{name}"]) for name, value in begun.state_dict().items())


def test_semi_starts_from_the_projectors_first_layer(run: Path) -> None:
    encoder = load_encoder(run)
    body, width = start_of(run, encoder, 1)
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    x = torch.rand(5, 3, 8, 8)
    y = encoder(x) @ saved["projector.layers.0.weight"].T
    scale = (saved["projector.layers.1.running_var"] + 1e-5).rsqrt() * saved["projector.layers.1.weight"]
    y = (y - saved["projector.layers.1.running_mean"]) * scale + saved["projector.layers.1.bias"]
    torch.testing.assert_close(body.eval()(x), y.relu(), atol=1e-5, rtol=1e-4)
    assert width == y.shape[1]
    assert start_of(run, encoder, "h") == (encoder, encoder.feature_dim)
    fresh, _ = start_of(run, encoder, 1, fresh=True)
    assert not torch.equal(fresh[1][0].weight, body[1][0].weight)
    with pytest.raises(UserError, match="h or 1 to 2"):  # three layers
        start_of(run, encoder, 3)
    with pytest.raises(UserError, match=r"semi\.start=h"):
        start_of(run / "exported", encoder, 1)


def test_published_scores_are_shown_for_the_same_data_and_architecture() -> None:
    spec = {"factory": "resnet", "depth": 18, "width": 1, "stem": "cifar"}
    figure = published("cifar10", spec, "linear")
    assert figure is not None
    assert figure.top1 == 0.91
    assert published("cifar10", {**spec, "width": 2}, "linear") is None
    assert published("cifar10", {**spec, "stem": "imagenet"}, "linear") is None
    assert published("stl10", spec, "linear") is None
    assert published("imagenet", {**spec, "depth": 50}, "knn") is None  # the published score has another k


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("protocol=[knn,lineer]",), "did you mean linear?"),
        (("transfer=[cifar11]",), "did you mean cifar10?"),
        (("select_on=test",), "no choice is made on test"),
        (("linear.epoch=3",), "did you mean linear.epochs?"),
        (("optimizer=lars",), "has no group 'optimizer'; its groups are data, model, views"),
        (("+optimizer=lars",), "has no group 'optimizer'"),
        (("optimizer.lr=1",), "did you mean linear.lr or semi.lr?"),
        (("model=tiny",), "remove model="),
        (("protocol=os.system",), "protocol=os.system: a configuration may not make this"),
        (("protocol=os.system", "trusted=[os]"), "os is not your own package"),
        (("semi.epochs=[3]",), "must have the same length"),
        (("knn.k=60",), "larger than the 58 labeled images"),
        (("data=array", "data.path=plain.npz"), "data.path=plain.npz: the test images have no labels"),
        (("data=array", "data.path=one.npz"), "data.path=one.npz: the labeled training images have 1 class"),
        (("transfer=[photos,array]", "paths.array=one.npz"), "paths.array=one.npz: the labeled training images"),
        (("transfer=[packed]", "paths.packed=."), "paths.packed=.: "),
        (("data=array", "data.path=untested.npz"), "the test images have no labels"),
        (("protocol=semi", "semi.start=3"), "1 to 2"),
        (("data=array", "data.path=none.npz"), "none.npz"),
        (("accelerator=mps",), "no GPU of Apple's"),
    ],
)
def test_a_mistake_prints_a_short_message_and_writes_nothing(
    simclr: Program, trained: Path, run: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], says: str
) -> None:
    images, labels = small_images(50)
    np.savez("plain.npz", train_images=images)
    np.savez("untested.npz", train_images=images, train_labels=labels)
    same = np.zeros_like(labels)
    np.savez("one.npz", train_images=images, train_labels=same, test_images=images[:9], test_labels=same[:9])
    assert simclr("evaluate", run, *overrides) != 0
    said = capsys.readouterr().err
    assert says in said, said
    assert said.count("\n") <= 5
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.yaml", "seed: 0\n", "is not a run's configuration"),
        ("config.yaml", "data: 3\nmodel: 4\nviews: 5\ntrainer: 6\n", "is not a run's configuration"),
        ("config.yaml", "data: {path: '${hydra.job.n'}\n", "name the images: data="),
        ("config.yaml", "data: {path: ???}\nmodel: {}\nviews: {}\ntrainer: {}\n", "name the images: data="),
    ],
)
def test_a_damaged_run_is_named(
    simclr: Program, run: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, says: str
) -> None:
    (run / ".hydra" / file).write_text(text)
    assert simclr("evaluate", run, "knn.k=5") == 1
    said = capsys.readouterr().err
    assert f"{run / '.hydra' / file}" in said
    assert says in said


def test_a_long_evaluation_is_refused_before_it_begins(
    simclr: Program, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("worked for nothing")

    monkeypatch.setattr(sgd, "linear", never)
    (run / "checkpoints").rename(run / "elsewhere")
    assert simclr("evaluate", run, "protocol=[linear,semi]", "semi.start=1") == 1
    assert "semi.start=h" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert simclr("evaluate", run, "protocol=knn", "knn.k=5", "accelerator=cuda") == 1
    assert "error: accelerator=cuda, but no GPU" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *args: False)  # permissions do not stop root
    assert simclr("evaluate", run, "protocol=linear") == 1
    assert "is not writable" in capsys.readouterr().err


def test_help_lists_the_keys(simclr: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert simclr("evaluate", "--help") == 0
    said = capsys.readouterr().out
    assert "select_on: held_out" in said
    assert "semi:" in said


def test_without_held_out_images_the_message_names_the_images(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "choose_held_out", lambda *arguments, **named: torch.empty(0, dtype=torch.int64))
    plain = to_plain(configure(Path("none"), ["data=array", f"data.path={npz}"]))
    plain["linear"]["lr"] = 0.1
    evaluate._data(plain, 8, 1, ["knn", "linear"])  # they choose nothing
    for asked in ("lbfgs", "finetune"):
        with pytest.raises(UserError, match=f"data.array, data.path={npz}: no image is held out, and {asked} would"):
            evaluate._data(plain, 8, 1, ["knn", asked])
