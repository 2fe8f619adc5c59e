"""A validation part: choices are made on it, and neither pretraining nor a probe is trained on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SMALL, small_data, small_images, small_splits
from simclr_lightning.callbacks import bank_indices
from simclr_lightning.data import ViewsDataModule, array, folder, pack, packed, samples
from simclr_lightning.data.images import Splits

Program = Callable[..., int]
RUN = (
    "model.encoder.width=0.125", "data.batch_size=8", "data.num_workers=0", "views=simclr_cifar", "views.size=8",
    "trainer.accelerator=cpu", "trainer.max_epochs=2", "optimizer=adamw",
)  # fmt: skip


def parts(root: Path, counts: dict[str, int]) -> Path:
    """Images with a class each: counts["val"] images in val/red/, val/green/ and val/blue/, and so on."""
    images, labels = small_images(sum(counts.values()))
    names = [part for part, count in counts.items() for _ in range(count)]
    for number, (part, image, label) in enumerate(zip(names, images, labels, strict=True)):
        path = root / part / ("red", "green", "blue")[label] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def from_folder(root: Path) -> Splits:
    return folder(parts(root, {"train": 30, "val": 9, "test": 12}))


def from_packed(root: Path) -> Splits:
    pack(parts(root / "images", {"train": 30, "val": 9, "test": 12}), root / "out")
    return packed(root / "out")


def from_array(root: Path) -> Splits:
    images, labels = small_images(51)
    ends = {"train": slice(0, 30), "val": slice(30, 39), "test": slice(39, 51)}
    root.mkdir(parents=True, exist_ok=True)
    arrays = {f"{part}_images": images[rows] for part, rows in ends.items()}
    np.savez(root / "x.npz", **arrays, **{f"{part}_labels": labels[rows] for part, rows in ends.items()})
    return array(root / "x.npz")


@pytest.mark.parametrize("source", [from_folder, from_packed, from_array])
def test_val_is_held_out_whole_and_every_training_image_is_in_the_bank(
    source: Callable[[Path], Splits], tmp_path: Path
) -> None:
    splits = source(tmp_path)
    assert (splits.training_images, splits.val_images, len(splits.train), len(splits.test)) == (30, 9, 39, 12)
    parts_of = np.array([name.split("/")[0] for name in splits.train.names])
    assert set(parts_of[splits.held_out]) == {"val"}
    assert len(splits.held_out) == 9
    bank = bank_indices(splits.train.labels, splits.held_out)
    assert set(parts_of[bank]) == {"train"}
    assert len(bank) == 30
    assert {name.split("/")[0] for name in splits.test.names} == {"test"}
    assert splits.train.labels[splits.held_out].bincount().tolist() == [3, 3, 3]
    assert any("is the held-out part" in note or "are the held-out part" in note for note in splits.notes)
    without = source(tmp_path / "again")
    assert without.fingerprint == splits.fingerprint


@pytest.mark.parametrize("source", [from_folder, from_array])
def test_an_epoch_is_of_the_training_images_alone(source: Callable[[Path], Splits], tmp_path: Path) -> None:
    splits = source(tmp_path)
    data = ViewsDataModule(lambda path: splits, batch_size=5, recipe=SMALL)
    assert data.steps_per_epoch == 6
    seen = torch.cat([batch["indices"] for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(30))
    with pytest.raises(ValueError, match="larger than the 30 training images"):
        ViewsDataModule(lambda path: splits, batch_size=31, recipe=SMALL).setup("fit")


def test_the_order_of_an_epoch_does_not_depend_on_a_validation_part(tmp_path: Path) -> None:
    whole = small_splits(count=30)
    more = from_array(tmp_path)
    orders = []
    for splits in (whole, more):
        data = small_data(batch=5, dataset=lambda path, splits=splits: splits)
        orders.append(torch.cat([batch["indices"] for batch in data.train_dataloader()]).tolist())
    assert orders[0] == orders[1]


def test_the_fingerprint_tells_a_validation_part_from_training_images(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(4):
            (tmp_path / part).mkdir(exist_ok=True)
            Image.fromarray(small_images(8)[0][number]).save(tmp_path / part / f"{number}.png")
    held, trained = folder(tmp_path, val="val"), folder(tmp_path, train=".", labels=False)
    assert [*held.train.names] == [*trained.train.names]
    assert (held.training_images, trained.training_images) == (4, 8)
    assert held.fingerprint != trained.fingerprint


def test_no_training_of_a_run_or_an_evaluation_sees_val(
    simclr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(tmp_path / "images", {"train": 30, "val": 9, "test": 12})
    trained_on: set[str] = set()
    real = samples.Crops.__getitem__

    def recorded(crops: samples.Crops, key: tuple[int, int]) -> object:
        trained_on.add(crops.images.names[key[1]].split("/")[0])
        return real(crops, key)

    monkeypatch.setattr(samples.Crops, "__getitem__", recorded)
    data = ("data=folder", f"data.path={tmp_path / 'images'}")
    assert simclr("train", *data, *RUN, "hydra.run.dir=run") == 0
    assert trained_on == {"train"}
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["steps"], summary["images_seen"]) == (6, 48)
    trained_on.clear()
    semi = ("semi.fractions=[0.9]", "semi.epochs=[1]")
    quick = ("linear.epochs=1", "finetune.epochs=1", "finetune.lr=[0.01,0.05]", *semi)
    words = ("protocol=[knn,lbfgs,linear,semi,finetune]", *quick, "knn.k=5", "data.num_workers=0")
    assert simclr("evaluate", "run", *words) == 0
    assert trained_on == {"train"}
    found = json.loads(Path("run/evaluation.json").read_text())
    assert (found["train_images"], found["test_images"], found["semi_90pct_images"]) == (30, 12, 27)


def test_choices_are_made_on_val(simclr: Program, tmp_path: Path) -> None:
    """With every label of val exchanged, what is measured on val collapses, and the scores on test stay."""
    images, labels = small_images(120)
    arrays = {
        f"{part}_{what}": values[rows]
        for part, rows in (("train", slice(0, 60)), ("val", slice(60, 90)), ("test", slice(90, 120)))
        for what, values in (("images", images), ("labels", labels))
    }
    found = []
    for name, shift in (("right", 0), ("wrong", 1)):
        np.savez(f"{name}.npz", **{**arrays, "val_labels": (arrays["val_labels"] + shift) % 3})
        words = ("data=array", f"data.path={name}.npz", *RUN[:2], *RUN[3:], f"hydra.run.dir={name}")
        assert simclr("train", *words) == 0
        found.append(json.loads(Path(name, "summary.json").read_text()))
    right, wrong = found
    assert right["online_knn_top1"] > 0.8 > 0.2 > wrong["online_knn_top1"]
    assert right["knn_top1"] == wrong["knn_top1"] > 0.8
