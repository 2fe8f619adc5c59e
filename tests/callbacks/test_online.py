"""Online scores: held-out images, signals, the probe, selection of the best checkpoint."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from conftest import small_data, small_module, small_splits, small_trainer
from simclr_lightning import checkpoint
from simclr_lightning.callbacks import (
    SELECTABLE,
    OnlineScore,
    Stopped,
    bank_indices,
    online as online_module,
    selected,
)
from simclr_lightning.data import TensorImages, ViewsDataModule
from simclr_lightning.selection import LABEL_FREE


def test_the_online_score_never_sees_test_nor_the_held_out_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    banks: list[torch.Tensor] = []
    real = online_module.knn_predict

    def spy(bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, *, k: int) -> torch.Tensor:
        seen.append((len(bank), len(queries)))
        banks.append(labels)
        return real(bank, labels, queries, k=k)

    monkeypatch.setattr(online_module, "knn_predict", spy)
    splits = small_splits()
    poisoned = splits.train.labels.clone()
    poisoned[splits.held_out] += 100  # a bank with such a label contains held-out images
    from simclr_lightning.data import Splits, TensorImages

    data = small_data(
        dataset=lambda path: Splits(
            TensorImages(splits.train.tensor, poisoned), None, splits.held_out, splits.class_names, "f"
        )
    )
    online = OnlineScore(k=3)
    trainer = small_trainer(tmp_path, extra=[online])
    trainer.fit(small_module(), datamodule=data)
    assert seen == [(63, 7)] * 3
    assert all((labels < 3).all() for labels in banks)
    assert online.latest["online/knn_top1"] == 0.0  # the held-out labels are the wrong ones


@pytest.mark.parametrize("labelled", [True, False])
def test_a_signal_ends_the_scoring(labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_data()
    if not labelled:
        data.splits = replace(data.load(), train=TensorImages(data.load().train.tensor), class_names=None)
    at: list[L.Trainer] = []

    def stop() -> int:
        return 15 if at[0].global_step == 4 else 0

    def never(*args: object, **options: object) -> None:
        raise AssertionError("scored")

    online = OnlineScore(k=3, stop=stop)
    monkeypatch.setattr(online_module, "knn_predict", never)
    monkeypatch.setattr(online_module, "score_views", never)
    at.append(small_trainer(tmp_path, stop=stop, extra=[online]))
    with pytest.raises(Stopped):
        at[0].fit(small_module(), datamodule=data)
    assert (online.score, online.latest) == (None, {})
    assert checkpoint.load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_collapsed_features_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Constant(nn.Module):
        feature_dim = 8

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * torch.ones(len(x), 8) + 0 * x.mean()

    module = small_module()
    module.encoder = Constant()
    small_trainer(tmp_path, extra=[OnlineScore(k=3)]).fit(module, datamodule=small_data())
    assert "collapsed: effective rank 1.0" in capsys.readouterr().err.replace("\n", " ")


def test_held_out_loss_is_nt_xent_of_held_out_views(tmp_path: Path) -> None:
    from simclr_lightning.ntxent import nt_xent

    data: ViewsDataModule = small_data(dataset=lambda path: small_splits(labelled=False))
    online, module = OnlineScore(), small_module()
    small_trainer(tmp_path, extra=[online]).fit(module, datamodule=data)
    module.eval()
    x_a, x_b = data.view_pairs(data.load().held_out)
    with torch.no_grad():
        z_a, z_b = (module.projector(module.encoder(x)) for x in (x_a, x_b))
    want = nt_xent(z_a, z_b, 0.5).loss.item()
    assert online.latest["online/held_out_loss"] == pytest.approx(want, rel=1e-6)
    assert online.score == -online.latest["online/held_out_loss"]


def weights_after(folder: Path, **options: object) -> dict[str, torch.Tensor]:
    module = small_module()
    small_trainer(folder, extra=[OnlineScore(k=3, **options)]).fit(module, datamodule=small_data())
    return module.state_dict()


def test_scores_change_no_weight_and_no_random_number(tmp_path: Path) -> None:
    without = weights_after(tmp_path / "off", every_n_epochs=0)
    for name, options in {"probe": {}, "no_probe": {"probe": False}}.items():
        found = weights_after(tmp_path / name, **options)
        assert all(torch.equal(found[key], without[key]) for key in without), name


@pytest.mark.parametrize(
    ("every", "options", "scored"), [(2, {}, [1, 2]), (5, {"max_steps": 6}, [1]), (5, {}, [2]), (0, {}, [])]
)
def test_the_last_epoch_is_always_scored(
    every: int, options: dict[str, int], scored: list[int], tmp_path: Path
) -> None:
    online, found = OnlineScore(every_n_epochs=every, k=3, probe=False), []

    class Epochs(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            found.extend([] if online.score is None else [trainer.current_epoch])

    small_trainer(tmp_path, extra=[online, Epochs()], **options).fit(small_module(), datamodule=small_data())
    assert found == scored


def test_the_online_probe_equals_scikit_learn_on_the_same_features(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    data, module, online = small_data(dataset=lambda path: small_splits(count=300)), small_module(), OnlineScore(k=3)
    rows: list[dict[str, float]] = []

    class Rows(L.pytorch.loggers.logger.DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            rows.append(dict(metrics))

    trainer = small_trainer(tmp_path, extra=[online], max_steps=18)
    trainer.loggers = [Rows()]
    trainer.fit(module, datamodule=data)
    splits = data.load()
    module.eval()
    with torch.no_grad():
        h = torch.cat([module.encoder(x) for x in data.eval_batches(splits.train)]).double().numpy()
    y, held = splits.train.labels.numpy(), splits.held_out.numpy()
    bank = [i for i in range(300) if i not in set(held)]
    l2 = 1e-3 * h[bank].var(0).mean()
    peer = LogisticRegression(C=1 / (len(bank) * l2), tol=1e-9, max_iter=10_000).fit(h[bank], y[bank])
    assert online.latest["online/linear_top1"] == pytest.approx(peer.score(h[held], y[held]))
    chance = -peer.predict_log_proba(h[held])[range(len(held)), y[held]].mean()
    assert online.latest["online/linear_loss"] == pytest.approx(chance, rel=0.05)
    assert online.latest["online/linear_loss"] < math.log(3)
    logged = [row for row in rows if "online/linear_top1" in row]
    assert logged[-1].items() >= online.latest.items()


def test_labels_decide_which_scores_are_logged(tmp_path: Path) -> None:
    free = {f"online/{name}" for name in LABEL_FREE}
    for labelled in (True, False):
        online = OnlineScore(k=3)
        data = small_data(dataset=lambda path, labelled=labelled: small_splits(labelled=labelled))
        small_trainer(tmp_path / str(labelled), extra=[online], max_steps=4).fit(small_module(), datamodule=data)
        with_labels = {"online/knn_top1", "online/linear_top1", "online/linear_loss"} if labelled else set()
        assert online.latest.keys() == free | with_labels


def test_the_selected_score_has_the_sign_under_which_higher_is_better(tmp_path: Path) -> None:
    found = dict.fromkeys(SELECTABLE, 0.25)
    assert {name: selected(found, name) for name in SELECTABLE} == {
        "knn_top1": 0.25, "linear_top1": 0.25, "held_out_loss": -0.25, "contrastive_accuracy": 0.25,
        "alignment": -0.25, "uniformity": -0.25, "rankme": 0.25, "effective_rank": 0.25, "neighbour_agreement": 0.25,
    }  # fmt: skip
    assert selected({"knn_top1": 0.5, "held_out_loss": 3.0}, "auto") == 0.5
    assert selected({"held_out_loss": 3.0}, "auto") == -3.0
    assert selected({}, "auto") is None
    online = OnlineScore(k=3, select="alignment")
    small_trainer(tmp_path, extra=[online], max_steps=4).fit(small_module(), datamodule=small_data())
    assert online.score == -online.latest["online/alignment"]


@pytest.mark.parametrize(
    ("options", "labelled", "says"),
    [
        (
            {"select": "knn_top1"},
            False,
            "needs labels, and these images have none: choose auto or one of held",
        ),
        ({"select": "linear_top1", "probe": False}, True, "callbacks.online.probe=true"),
        ({"select": "rankme", "every_n_epochs": 0}, True, "callbacks.online.every_n_epochs to 1"),
    ],
)
def test_an_impossible_selection_is_refused_before_the_first_step(
    tmp_path: Path, options: dict[str, object], labelled: bool, says: str
) -> None:
    data = small_data(dataset=lambda path: small_splits(labelled=labelled))
    trainer = small_trainer(tmp_path, extra=[OnlineScore(**options)])
    with pytest.raises(ValueError, match=says):
        trainer.fit(small_module(), datamodule=data)
    assert trainer.global_step == 0
    with pytest.raises(ValueError, match="choose auto or one of knn_top1"):
        OnlineScore(select="nothing")


def test_bank_indices_contain_no_held_out_and_no_unlabeled_image() -> None:
    labels = torch.tensor([0, -1, 1, 2, 0])
    assert bank_indices(labels, torch.tensor([3])).tolist() == [0, 2, 4]
    assert labels.tolist() == [0, -1, 1, 2, 0]
