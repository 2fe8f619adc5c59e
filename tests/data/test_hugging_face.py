"""`data=hf` from the command line: files of `save_to_disk`, Parquet and images; and `data=custom` with any data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import OVERRIDES, small_images
from simclr_lightning.data import hf

datasets = pytest.importorskip("datasets")
IMAGES, CLASSES = small_images(40)
RUN = (*OVERRIDES[1:], "trainer.max_epochs=1", "data.num_workers=0", "callbacks.online.every_n_epochs=0")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def made() -> Any:
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["r", "g", "b"])})
    found = {"photo": [Image.fromarray(image) for image in IMAGES], "kind": CLASSES.tolist()}
    return datasets.Dataset.from_dict(found, features=features)


def folders(root: Path) -> dict[str, Path]:
    """The same images as every kind of local files."""
    paths = {name: root / name for name in ("saved", "parts", "parquet", "file.parquet", "pictures")}
    made().save_to_disk(str(paths["saved"]))
    datasets.DatasetDict(train=made(), test=made()).save_to_disk(str(paths["parts"]))
    paths["parquet"].mkdir()
    for name in ("train", "test"):
        made().to_parquet(str(paths["parquet"] / f"{name}-00000-of-00001.parquet"))
    made().to_parquet(str(paths["file.parquet"]))
    for index, image in enumerate(IMAGES):
        path = paths["pictures"] / "rgb"[CLASSES[index]] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return paths


def test_every_kind_of_local_files_is_read_as_the_same_images(tmp_path: Path) -> None:
    pixels = np.sort(IMAGES.reshape(len(IMAGES), -1).sum(1))
    for name, path in folders(tmp_path).items():
        splits = hf(path)
        found = torch.stack([splits.train.load(i) for i in range(len(splits.train))])
        assert np.array_equal(np.sort(found.reshape(len(found), -1).sum(1).numpy()), pixels), name
        assert set(splits.class_names or ()) == {"r", "g", "b"}, name
        assert (splits.test is not None) == (name in ("parts", "parquet")), name
    assert hf(tmp_path / "saved", image="photo", label="kind").class_names == ("r", "g", "b")


def test_a_run_on_a_saved_data_set_finishes_with_scores_and_resumes(
    tmp_path: Path, simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folders(tmp_path)
    words = ("data=hf", "data.path=parts", *RUN)
    assert simclr("train", *words, "trainer.max_steps=1", "hydra.run.dir=run") == 0
    assert simclr("train", "ckpt_path=run", "trainer.max_steps=2") == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    assert 0 <= summary["knn_top1"] <= 1
    assert simclr("train", "data=hf", "data.path=parts", "data.dataset.label=clas", *RUN) == 1
    assert "label=clas: there is no such column; the columns are photo, kind" in capsys.readouterr().err


def test_what_is_no_such_data_set_is_refused(
    tmp_path: Path, simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "script.py").write_text("raise SystemExit('this code must not run')")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    for path, says in (
        ("nowhere", "nowhere: there is no such folder or file"),
        ("notes", "notes: there is no data set of datasets.save_to_disk in it"),
        ("bad.parquet", "bad.parquet: Parquet"),
    ):
        assert simclr("train", "data=hf", f"data.path={path}", *RUN) == 1
        assert says in capsys.readouterr().err


PACKAGE = """
import numpy as np
import torch
from PIL import Image

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3), dtype=np.uint8)

class Pictures(torch.utils.data.Dataset):
    def __init__(self, path, count=24):
        self.targets = [index % 2 for index in range(count)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return Image.fromarray(IMAGES[index]), self.targets[index]

def saved(path):
    import datasets
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in IMAGES]}, features=datasets.Features({"image": datasets.Image()})
    )

class Half:
    def __call__(self, image):
        return image.resize((8, 8))
"""


def test_a_custom_target_may_return_any_data(
    tmp_path: Path, simclr: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "anypkg.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("data=custom", "trusted=[anypkg]", "data.batch_size=8", *RUN[:1], *RUN[2:], "trainer.max_steps=1")
    for run, target in (
        ("a", ["data.dataset._target_=anypkg.Pictures", "+data.augment._target_=anypkg.Half"]),
        ("b", ["data.dataset._target_=anypkg.saved"]),
    ):
        assert simclr("train", *target, *words, f"hydra.run.dir={run}") == 0
        assert json.loads(Path(run, "summary.json").read_text())["status"] == "finished"
