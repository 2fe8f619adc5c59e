"""The end of a run: what is computed once, what is cached, and what a job of a sweep leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import OVERRIDES
from simclr_lightning import pictures
from simclr_lightning.app.training import baselines, finish
from simclr_lightning.evaluation.protocols import features
from simclr_lightning.report.write import write_report
from simclr_lightning.run_folder import read_summary

Simclr = Callable[..., int]
BASELINES = ("knn_top1_untrained", "knn_top1_pixels")


def test_a_cached_score_is_computed_once_and_again_if_its_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []

    def compute() -> float:
        calls.append(1)
        return 1 / 3

    assert [baselines.cached("a" * 32, compute) for _ in range(3)] == [1 / 3] * 3
    assert len(calls) == 1
    (file,) = tmp_path.rglob("*.json")
    for damaged in (file.read_text().replace("0.3", "0.9"), "", "[]", '{"score": 1}'):
        file.write_text(damaged)
        assert baselines.cached("a" * 32, compute) == 1 / 3
    assert len(calls) == 5
    file.rename(file.with_name("b" * 32 + ".json"))  # a file under another key is not its score
    assert baselines.cached("b" * 32, compute) == 1 / 3
    assert baselines.cached(None, compute) == 1 / 3
    assert len(calls) == 7
    monkeypatch.setenv("XDG_CACHE_HOME", str(file.with_name("b" * 32 + ".json")))  # no folder can be made there
    assert baselines.cached("c" * 32, compute) == 1 / 3


def test_a_sweep_pays_baselines_once_and_the_report_draws_the_best_jobs_map(
    npz: Path, simclr: Simclr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    extracted: list[Any] = []
    real, real_extract = finish.features, features.extract
    monkeypatch.setattr(finish, "features", lambda *a: extracted.append("features") or real(*a))
    monkeypatch.setattr(features, "extract", lambda *a, **o: extracted.append("pass") or real_extract(*a, **o))
    Path("sweep").mkdir()
    Path("sweep/sweep.yaml").write_text("jobs: {}")
    words = ("train", *OVERRIDES, f"data.path={npz}")
    for name, more in {"sweep/a": (), "sweep/b": ("loss.temperature=0.3",), "sweep/c": ("seed=1",)}.items():
        assert simclr(*words, f"hydra.run.dir={name}", *more) == 0
        extracted.append(name)
        assert not list(Path(name).glob("*.png"))
    # The trained encoder: one pass, over test, since the last scores of the run had those of train. The untrained
    # encoder: two passes, for the first job with its seed.
    trained, untrained = ["features", "pass"], ["features", "pass", "pass"]
    assert extracted == [*trained, *untrained, "sweep/a", *trained, "sweep/b", *trained, *untrained, "sweep/c"]
    runs = {name: read_summary(Path("sweep", name)) for name in "abc"}
    assert [runs["a"][key] for key in BASELINES] == [runs["b"][key] for key in BASELINES]

    # Without the cache and without the features of the last scores, all scores are the same.
    monkeypatch.setattr(baselines, "key_of", lambda *a, **o: None)
    monkeypatch.setattr(finish, "key_of", lambda *a, **o: None)
    assert simclr(*words, "hydra.run.dir=alone", "callbacks.online.bank_at_most=20", "pictures=false") == 0
    alone = json.loads(Path("alone/summary.json").read_text())
    assert {key: alone[key] for key in (*BASELINES, "knn_top1", "linear_top1")} == {
        key: runs["a"][key] for key in (*BASELINES, "knn_top1", "linear_top1")
    }
    assert not list(Path("alone").glob("*.png"))
    assert not Path("alone/features").exists()

    drawn: list[Path] = []

    def draw(points: Path, path: Path) -> Path:
        drawn.append(points)
        return pictures.embedding_map(torch.eye(3), None, None, path, method="pca")

    monkeypatch.setattr(pictures, "map_of_points", draw)
    report = write_report(Path("sweep"))
    best = max("abc", key=lambda name: runs[name]["held_out_score"])
    assert drawn == [Path("sweep", best, "features/map.npz")]
    assert "best_map.png" in report.files


def test_the_map_of_stored_points_is_the_map_of_the_features(tmp_path: Path) -> None:
    h, labels = torch.rand(30, 5), torch.arange(30) % 2
    stored = pictures.save_points(h, labels, ("one", "two"), tmp_path / "new" / "map.npz")
    drawn = pictures.map_of_points(stored, tmp_path / "a.png")
    assert drawn.read_bytes() == pictures.embedding_map(h, labels, ("one", "two"), tmp_path / "b.png").read_bytes()
    bare = pictures.save_points(h, None, None, tmp_path / "bare.npz")
    with np.load(bare, allow_pickle=False) as arrays:
        assert list(arrays) == ["h"]
    bare.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged"):
        pictures.map_of_points(bare, tmp_path / "c.png")
