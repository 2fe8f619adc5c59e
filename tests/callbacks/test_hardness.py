"""How hard the negatives are: against a naive float64 computation and closed forms, and what a run logs."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from conftest import small_data, small_module, small_splits, small_trainer
from simclr_lightning.callbacks import Hardness, hardness as hardness_module
from simclr_lightning.ntxent import hardness, nt_xent

SHARES = ("hardest_1", "hardest_10", "same_class_hardest_1", "same_class_hardest_10", "same_class_all")


def naive(
    z_a: np.ndarray, z_b: np.ndarray, temperature: float, labels: Sequence[int], pairs: Sequence[int], bins: int
) -> dict[str, Any]:
    """Row by row, negative by negative, in float64."""
    n = len(z_a)
    z = np.concatenate([z_a, z_b]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosines = z @ z.T
    found: dict[str, list[float]] = {name: [] for name in SHARES}
    counts = {"positives": np.zeros(bins, int), "negatives": np.zeros(bins, int)}
    for row in [*pairs, *(pair + n for pair in pairs)]:
        partner = (row + n) % (2 * n)
        negatives = sorted((j for j in range(2 * n) if j not in (row, partner)), key=lambda j: -cosines[row, j])
        for name, columns in (("positives", [partner]), ("negatives", negatives)):
            for j in columns:
                counts[name][min(int((cosines[row, j] + 1) / 2 * bins), bins - 1)] += 1
        largest = cosines[row, negatives[0]]
        p = [math.exp((cosines[row, j] - largest) / temperature) for j in negatives]
        for name, part in (("1", 0.01), ("10", 0.1), ("all", 1.0)):
            m = part * len(negatives)
            weight = [max(0.0, min(1.0, m - rank)) for rank in range(len(negatives))]
            if part < 1:
                found[f"hardest_{name}"].append(sum(w * x for w, x in zip(weight, p, strict=True)) / sum(p))
            known = [w * (labels[j % n] >= 0) for w, j in zip(weight, negatives, strict=True)]
            if labels[row % n] >= 0 and sum(known):
                same = [w * (labels[j % n] == labels[row % n]) for w, j in zip(known, negatives, strict=True)]
                found["same_class_" + (name if name == "all" else f"hardest_{name}")].append(sum(same) / sum(known))
    return {**{name: float(np.mean(values)) for name, values in found.items()}, **counts}


def views(n: int, width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    z_a, noise = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z_a * 3, z_a + 0.5 * noise


@pytest.mark.parametrize("temperature", [0.005, 0.1, 1.0, 100.0])
@pytest.mark.parametrize(("n", "rows"), [(2, 256), (13, 256), (60, 256), (90, 50)])
def test_hardness_equals_the_naive_computation(n: int, rows: int, temperature: float) -> None:
    z_a, z_b = views(n)
    labels = torch.randint(-1, 3, (n,), generator=torch.Generator().manual_seed(n))
    labels[:2] = 0
    count = min(n, rows // 2)
    pairs = [i * n // count for i in range(count)]
    want = naive(z_a.numpy(), z_b.numpy(), temperature, labels.tolist(), pairs, 64)
    for kind, accuracy in ((torch.float64, 1e-10), (torch.float32, 2e-4)):
        got = hardness(z_a.to(kind), z_b.to(kind), temperature, labels=labels, rows=rows)
        for name in SHARES:
            assert getattr(got, name).item() == pytest.approx(want[name], abs=accuracy), name
        if kind == torch.float64:  # a cosine at a bin's edge may fall to either side in float32
            assert got.positives.tolist() == want["positives"].tolist()
            assert got.negatives.tolist() == want["negatives"].tolist()
    assert got.positives.sum() == 2 * count
    assert got.negatives.sum() == 2 * count * (2 * n - 2)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("n", [2, 7, 50, 400])
def test_equal_negatives_get_equal_shares(n: int, temperature: float) -> None:
    got = hardness(torch.eye(n), torch.eye(n), temperature, labels=torch.zeros(n, dtype=torch.int64), bins=4)
    assert got.hardest_1.item() == pytest.approx(0.01, rel=1e-5)
    assert got.hardest_10.item() == pytest.approx(0.1, rel=1e-5)
    assert [getattr(got, name).item() for name in SHARES[2:]] == pytest.approx([1, 1, 1])
    rows = min(2 * n, 256)
    assert got.positives.tolist() == [0, 0, 0, rows]
    assert got.negatives.tolist() == [0, 0, rows * (2 * n - 2), 0]


def test_a_large_temperature_gives_equal_shares_and_a_small_one_gives_all_to_the_hardest() -> None:
    z_a, z_b = views(101)  # 200 negatives
    soft, hard = hardness(z_a, z_b, 1e6), hardness(z_a, z_b, 1e-4)
    assert [soft.hardest_1.item(), soft.hardest_10.item()] == pytest.approx([0.01, 0.1], rel=1e-4)
    assert [hard.hardest_1.item(), hard.hardest_10.item()] == pytest.approx([1, 1], abs=0.01)
    assert torch.equal(soft.negatives, hard.negatives)


def test_the_hardest_negatives_of_two_separate_classes_are_of_the_own_class() -> None:
    """All rows of a class are equal, and at a right angle to the other class."""
    labels = torch.arange(40) % 2
    z = torch.eye(2)[labels]
    got = hardness(z, z, 0.5, labels=labels)
    m, same = 78, 38
    assert got.same_class_hardest_10.item() == got.same_class_hardest_1.item() == 1.0
    assert got.same_class_all.item() == pytest.approx(same / m)
    # exp(2) for each of the same class, 1 for each other: the hardest tenth are 7.8 of the former.
    assert got.hardest_10.item() == pytest.approx(7.8 * math.e**2 / (same * math.e**2 + m - same), rel=1e-5)


def test_without_labels_the_shares_of_the_same_class_are_nan() -> None:
    z_a, z_b = views(12)
    for labels in (None, torch.full((12,), -1)):
        got = hardness(z_a, z_b, 0.2, labels=labels)
        assert all(math.isnan(getattr(got, name)) for name in SHARES[2:])
        assert got.hardest_10.item() > 0


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_odd_vectors_give_finite_shares_and_one_pair_is_refused(kind: torch.dtype) -> None:
    z = torch.tensor([[3e4, 1.0], [0.0, 0.0], [-3e4, 5.0], [1e-3, 1e-3]], dtype=kind)
    got = hardness(z, z.flip(1), 0.005)
    assert math.isfinite(got.hardest_1)
    assert got.negatives.sum() == 8 * 6
    with pytest.raises(ValueError, match="at least 2 pairs"):
        hardness(z[:1], z[:1], 0.1)


class Watch(L.Callback):
    """Store the output of the projector at every step."""

    def __init__(self) -> None:
        self.z: dict[int, torch.Tensor] = {}
        self.indices: dict[int, torch.Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        def keep(module: object, x: object, z: torch.Tensor) -> None:
            self.z[trainer.global_step + 1] = z.detach()

        self.hook = pl_module.projector.register_forward_hook(keep)

    def on_train_batch_end(self, trainer: L.Trainer, m: object, outputs: object, batch: Any, i: int) -> None:
        self.indices[trainer.global_step] = batch["indices"]

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.hook.remove()


class Rows(L.pytorch.loggers.logger.DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.setdefault(step, {}).update(metrics)


def file_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fitted(tmp_path: Path, *extra: L.Callback, **data: Any) -> tuple[Any, Rows]:
    module, rows = small_module(), Rows()
    trainer = small_trainer(tmp_path, extra=list(extra))
    trainer.loggers = [rows]
    trainer.fit(module, datamodule=small_data(**data))
    return module, rows


def test_a_run_logs_the_hardness_of_its_z_and_trains_as_without(tmp_path: Path) -> None:
    watch, path = Watch(), tmp_path / "similarity.csv"
    module, logged = fitted(tmp_path / "a", watch, Hardness(path, every_n_steps=5))
    steps = [step for step, row in logged.rows.items() if "train/hardest_10" in row]
    assert steps == [5, 10, 12]  # the last one too
    labels = small_splits().train.labels
    for step in steps:
        z_a, z_b = watch.z[step].chunk(2)
        y = labels[watch.indices[step]]
        want = naive(z_a.numpy(), z_b.numpy(), 0.5, y.tolist(), range(16), 64)
        row = logged.rows[step]
        for name in SHARES:
            assert row[f"train/{name}"] == pytest.approx(want[name], abs=1e-5), name
        entropy = nt_xent(z_a.double(), z_b.double(), 0.5).entropy_all.item()
        assert row["train/effective_negatives"] == pytest.approx(math.exp(entropy), rel=1e-5)
        bins = [entry for entry in file_rows(path) if entry["step"] == str(step)]
        assert [float(entry["low"]) for entry in bins] == [i / 32 - 1 for i in range(64)]
        assert [float(entry["high"]) for entry in bins] == [(i + 1) / 32 - 1 for i in range(64)]
        assert sum(int(entry["positives"]) for entry in bins) == 32
        near = np.abs(np.cumsum([int(entry["negatives"]) for entry in bins]) - np.cumsum(want["negatives"]))
        assert near.max() <= 1  # an edge in float32
    plain, _ = fitted(tmp_path / "b")
    assert not module.loss._forward_hooks
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_hardness_can_be_turned_off_and_works_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "similarity.csv"
    _, logged = fitted(tmp_path / "a", Hardness(path, every_n_steps=0))
    assert not any("train/hardest_10" in row for row in logged.rows.values())
    assert not path.exists()
    _, logged = fitted(tmp_path / "b", Hardness(every_n_steps=12), dataset=lambda path: small_splits(labelled=False))
    assert {"train/hardest_1", "train/effective_negatives"} <= logged.rows[12].keys()
    assert not any("same_class" in name for name in logged.rows[12])


def test_a_resumed_run_removes_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "similarity.csv"
    z_a, z_b = views(4)
    for step in (5, 10, 15):
        hardness_module._append(path, step, hardness(z_a, z_b, 0.1, bins=3))
    whole = file_rows(path)
    with path.open("a") as file:
        file.write("20,-1,-0.3")  # killed while writing
    hardness_module._cut(path, 10)
    assert file_rows(path) == whole[:6]
    hardness_module._append(path, 15, hardness(z_a, z_b, 0.1, bins=3))
    assert file_rows(path) == whole
