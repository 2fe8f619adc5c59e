"""Health, online scores, checkpoints and metrics: NaN, signals, held-out images, other losses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from conftest import small_data, small_module, small_splits, small_trainer
from simclr_lightning import callbacks, checkpoint
from simclr_lightning.callbacks import (
    SELECTABLE,
    Health,
    MeanOverRanks,
    NonFiniteError,
    OnlineScore,
    StepMetrics,
    Stopped,
    bank_indices,
    selected,
)
from simclr_lightning.callbacks import health as health_module
from simclr_lightning.callbacks import online as online_module
from simclr_lightning.data import TensorImages, ViewsDataModule
from simclr_lightning.evaluation import BETTER
from simclr_lightning.ntxent import NTXent


class Poison(L.Callback):
    """Put a value into the gradient or the loss of one step."""

    def __init__(self, step: int, value: float, where: str) -> None:
        self.step, self.value, self.where = step, value, where
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, i: int) -> None:
        if trainer.global_step == self.step:
            self.before = {name: value.clone() for name, value in module.named_parameters()}
            if self.where == "loss":
                loss = module.loss
                module.loss = lambda a, b: loss(a, b)._replace(loss=loss(a, b).loss + self.value)
                self.undo = loss

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == self.step and self.where == "gradient":
            next(module.encoder.parameters()).grad.view(-1)[0] = self.value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_non_finite_update_is_skipped_and_the_run_stops(tmp_path: Path, value: float, where: str, step: int) -> None:
    poison, module = Poison(step, value, where), small_module()
    # nn.Module accepts no function as a submodule, so the loss becomes a plain attribute.
    del module._modules["loss"]
    module.__dict__["loss"] = NTXent(0.5)
    trainer = small_trainer(tmp_path, extra=[poison])
    data = small_data()
    with pytest.raises(NonFiniteError, match=f"at step {step} ") as error:
        trainer.fit(module, datamodule=data)
    after = dict(module.named_parameters())
    assert all(torch.equal(after[name], poison.before[name]) for name in after)
    assert trainer.global_step == step + 1
    first = small_data()
    first._offset = step * 16
    wanted = next(iter(first.train_dataloader()))["indices"].tolist()
    assert ", ".join(map(str, wanted)) in str(error.value)
    saved = checkpoint.newest(tmp_path)
    if step < 4:
        assert saved is None
    else:
        state = checkpoint.load(saved[0])["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


class Spoil(L.Callback):
    """At one step, put NaN into the images or infinity into the BatchNorm statistics (as an fp16 overflow does)."""

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, i: int) -> None:
        if trainer.global_step == self.step:
            if self.where == "images":
                batch["x_a"][0] = math.nan
            else:
                module.encoder.body[1].running_var[0] = math.inf


@pytest.mark.parametrize(
    ("where", "says"), [("images", "NaN or infinity in loss or gradient at step 2"), ("statistics", "running_var")]
)
def test_a_save_between_two_reads_of_an_accelerator_is_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, says: str
) -> None:
    monkeypatch.setattr(health_module, "_reading_is_free", lambda device: False)
    trainer = small_trainer(tmp_path, extra=[Spoil(2, where)])
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, callbacks.Checkpoints))
    checkpoints.every_n_steps = 1
    with pytest.raises(NonFiniteError, match=says):
        trainer.fit(small_module(), datamodule=small_data())
    found = checkpoint.newest(tmp_path)
    saved = checkpoint.load(found[0])
    assert saved["global_step"] == 2
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_optimizers_skip_a_non_finite_update(tmp_path: Path, name: str) -> None:
    from functools import partial

    module = small_module()
    module.make_optimizer = partial(getattr(torch.optim, name), lr=0.1, fused=True)
    poison = Poison(2, math.nan, "gradient")
    with pytest.raises(NonFiniteError):
        small_trainer(tmp_path, extra=[poison]).fit(module, datamodule=small_data())
    assert all(torch.equal(value, poison.before[key]) for key, value in module.named_parameters())


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


def test_the_best_checkpoint_is_the_one_of_the_best_score(tmp_path: Path) -> None:
    class Scripted(OnlineScore):
        scores = (0.2, 0.9, 0.5)

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.score = self.scores[trainer.current_epoch]

    online = Scripted()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, plugins=[checkpoint.AtomicCheckpointIO()],
        callbacks=[online, callbacks.Checkpoints(tmp_path / "checkpoints", online=online)],
    )  # fmt: skip
    trainer.fit(small_module(), datamodule=small_data())
    steps = [checkpoint.load(tmp_path / "checkpoints" / name)["global_step"] for name in ("best.ckpt", "last.ckpt")]
    assert steps == [8, 12]


def test_checkpoints_are_saved_inside_an_epoch(tmp_path: Path) -> None:
    saved: list[int] = []

    class Spy(callbacks.Checkpoints):
        def on_save_checkpoint(self, trainer: L.Trainer, module: object, checkpoint: dict[str, object]) -> None:
            saved.append(trainer.global_step)

    spy = Spy(tmp_path / "checkpoints", every_n_steps=3, every_n_epochs=2)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, plugins=[checkpoint.AtomicCheckpointIO()],
        callbacks=[spy],
    )  # fmt: skip
    trainer.fit(small_module(), datamodule=small_data())
    assert saved == [3, 6, 8, 9, 12]  # steps of three, the second epoch's end, the end


def test_step_metrics_are_means(tmp_path: Path) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    losses: list[float] = []

    class Spy(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, m: object, outputs: object, batch: object, i: int) -> None:
            losses.append(float(outputs["train/loss"]))

    metrics = StepMetrics(every_n_steps=3)
    trainer = small_trainer(tmp_path, extra=[Spy(), metrics])

    class Rows(L.pytorch.loggers.logger.DummyLogger):
        def log_metrics(self, found: dict[str, float], step: int) -> None:
            rows.append((step, dict(found)))

    trainer.loggers = [Rows()]
    trainer.fit(small_module(), datamodule=small_data())
    by_step = {step: row["train/loss_step"] for step, row in rows if "train/loss_step" in row}
    assert by_step.keys() == {3, 6, 9, 12}
    for step, value in by_step.items():
        assert value == pytest.approx(sum(losses[step - 3 : step]) / 3)
    epochs = [row["train/loss"] for _, row in rows if "train/loss" in row]
    assert epochs == pytest.approx([sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)])


def test_means_survive_a_checkpoint() -> None:
    mean = MeanOverRanks(2)
    mean.add(torch.tensor([1.0, 2.0]))
    other = MeanOverRanks(2)
    other.restore(mean.state())
    other.add(torch.tensor([3.0, 6.0]))
    assert other.take() == [2.0, 4.0]
    assert other.take() == [0.0, 0.0]


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
        def log_metrics(self, found: dict[str, float], step: int) -> None:
            rows.append(dict(found))

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
    free = {f"online/{name}" for name in BETTER}
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


def test_health_counts_overflows_in_a_row_under_a_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_scaler", lambda trainer: object())
    health = Health()
    health.row, health.first_bad = torch.tensor(19), torch.tensor(4)
    health._raise_if_bad(L.Trainer.__new__(L.Trainer))
    health.row += 1
    with pytest.raises(NonFiniteError, match="20 fp16 overflows in a row since step 4"):
        health._raise_if_bad(L.Trainer.__new__(L.Trainer))
