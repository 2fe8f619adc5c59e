"""Runs with Lightning's own callbacks, profilers, strategies and Trainer arguments, and with callbacks of the user."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf

from conftest import OVERRIDES, small_data
from simclr_lightning import checkpoint, machine
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.training.devices import device_count, processes_note
from simclr_lightning.app.training.stock import Watch, make_strategy

Program = Callable[..., int]
STOCK = "lightning.pytorch.callbacks"
# At most one progress bar fits into a Trainer.
TEN = {
    "device": {"_target_": "DeviceStatsMonitor"},
    "stop": {"_target_": "EarlyStopping", "monitor": "online/knn_top1", "patience": "9"},
    "stop_loss": {"_target_": "EarlyStopping", "monitor": "train/loss", "patience": "9", "mode": "min"},
    "rates": {"_target_": "LearningRateMonitor", "logging_interval": "epoch"},
    "best_loss": {"_target_": "ModelCheckpoint", "monitor": "online/held_out_loss", "filename": "best"},
    "saved": {"_target_": "ModelCheckpoint", "dirpath": "more", "every_n_epochs": "1", "filename": "epoch"},
    "summary": {"_target_": "ModelSummary", "max_depth": "2"},
    "failed": {"_target_": "OnExceptionCheckpoint"},
    "table": {"_target_": "RichModelSummary"},
    "bar": {"_target_": "TQDMProgressBar", "refresh_rate": "0"},
    "limit": {"_target_": "Timer", "duration": "00:01:00:00"},
}


def words_of(callbacks: dict[str, dict[str, str]]) -> list[str]:
    return [
        f"callbacks.{name}.{key}={f'{STOCK}.{value}' if key == '_target_' else value}"
        for name, node in callbacks.items()
        for key, value in node.items()
    ]


def summary(run: str) -> dict[str, Any]:
    return json.loads((Path(run) / "summary.json").read_text())


def columns(run: str) -> set[str]:
    with (Path(run) / "metrics.csv").open() as file:
        return set(next(csv.reader(file)))


def test_the_callbacks_of_lightning_run_together_and_their_state_is_resumed(simclr: Program, npz: Path) -> None:
    more = [
        "trainer.profiler=simple",
        "trainer.gradient_clip_val=1",
        "trainer.detect_anomaly=true",
        "trainer.strategy=ddp",
    ]
    words = [*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", *words_of(TEN), *more]
    assert simclr("train", *words) == 0
    assert (summary("run")["status"], summary("run")["steps"]) == ("finished", 8)
    assert len(list(Path("run/checkpoints/best_loss").glob("*.ckpt"))) == 1  # save_top_k is 1
    assert list(Path("run/more").glob("*.ckpt"))
    assert "optimizer_step" in Path("run/fit-profile.txt").read_text()
    assert {"train/loss", "online/knn_top1"} < columns("run")
    assert any(name.startswith("lr-") for name in columns("run"))
    assert not {path.name for path in Path.cwd().iterdir()} - {"run", "images.npz"}
    states = checkpoint.load(Path("run/checkpoints/last.ckpt"))["callbacks"]
    assert {key.partition("{")[0] for key in states} >= {"EarlyStopping", "ModelCheckpoint", "Timer"}
    assert simclr("train", "ckpt_path=run", "trainer.max_epochs=3") == 0
    assert summary("run")["steps"] == 12
    assert len(list(Path("run/checkpoints/best_loss").glob("*.ckpt"))) == 1


def test_a_run_that_a_callback_ends_is_finished(simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = ["early_stopping=default", "early_stopping.patience=1", "early_stopping.min_delta=100"]
    words = [*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "trainer.max_epochs=9", *group]
    assert simclr("train", *words) == 0
    found = summary("run")
    assert (found["status"], found["steps"], found["epochs"]) == ("finished", 8, 2)  # patience 1: the second score
    assert found["knn_top1"] is not None
    assert Path("run/exported/encoder.safetensors").exists()
    said = capsys.readouterr().out
    assert "training ended at step 8 of 36: EarlyStopping: online/held_out_loss" in said
    assert "simclr train ckpt_path=run early_stopping.patience=N" in said
    assert simclr("train", "ckpt_path=run") == 0
    assert "run is finished: 8 steps; to train longer, raise the limit of the callback" in capsys.readouterr().out
    assert simclr("train", "ckpt_path=run", "early_stopping.patience=3") == 0  # two scores more
    assert summary("run")["steps"] == 16


def test_a_time_limit_ends_a_run_in_an_epoch_and_it_is_scored(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "callbacks.online.every_n_epochs=5"]
    assert simclr("train", *words, "trainer.max_epochs=9", "trainer.max_time={milliseconds:1}") == 0
    found = summary("run")
    assert (found["status"], found["steps"]) == ("finished", 1)
    assert found["online_knn_top1"] is not None
    assert "step 1 of 36: the time limit is reached" in capsys.readouterr().out


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "own_callbacks_of_a_test"
    (tmp_path / f"{name}.py").write_text(
        "import lightning as L\n"
        "class Mine(L.Callback):\n"
        "    def __init__(self, text: str = 'x'): self.text = text\n"
        "    def on_train_end(self, trainer, pl_module): print('mine', self.text, trainer.global_step)\n"
        "class NoCallback: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


def test_a_callback_of_the_user_is_made_and_called(
    own: str, simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "trainer.max_steps=1"]
    mine = [f"callbacks.mine._target_={own}.Mine", "callbacks.mine.text=hello"]
    assert simclr("train", *words, *mine) == 2
    assert "trusted=[PACKAGE]" in capsys.readouterr().err
    assert not Path("run").exists()
    assert simclr("train", *words, *mine[:1], "callbacks.mine.txt=a", f"trusted=[{own}]") == 2
    assert "did you mean callbacks.mine.text?" in capsys.readouterr().err
    assert simclr("train", *words, *mine, f"trusted=[{own}]") == 0
    assert "mine hello 1" in capsys.readouterr().out
    words[-2] = "hydra.run.dir=other"
    assert simclr("train", *words, f"callbacks.mine._target_={own}.NoCallback", f"trusted=[{own}]") == 1
    assert "it must make a lightning.Callback" in capsys.readouterr().err


def test_a_fast_run_trains_one_batch_and_leaves_nothing(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(Path.cwd().iterdir())
    words = [*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "early_stopping=default", "logger=tensorboard"]
    assert simclr("train", *words, "trainer.fast_dev_run=true") == 0
    assert "trainer.fast_dev_run: 1 batch(es) trained; no scores, pictures or files" in capsys.readouterr().out
    assert set(Path.cwd().iterdir()) == before


def test_a_sweep_takes_the_same_keys(simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = f"callbacks.rates._target_={STOCK}.LearningRateMonitor"
    words = [
        *OVERRIDES,
        f"data.path={npz}",
        "-m",
        rates,
        "trainer.max_time={hours:1}",
        "trainer.gradient_clip_val=0.5,1",
    ]
    assert simclr("train", *words, "hydra.sweep.dir=sweep", "dry_run=true") == 0
    said = capsys.readouterr().out
    assert "2 jobs in" in said
    assert "all jobs are checked" in said
    assert simclr("train", *words, "hydra.sweep.dir=sweep", "dry_run=true", "callbacks.rates.interval=step") == 2
    assert "callbacks.rates.interval: unknown key" in capsys.readouterr().err


def test_a_limit_shortens_the_epochs_and_all_that_counts_them(simclr: Program, npz: Path) -> None:
    words = [*OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "trainer.log_every_n_steps=1"]
    assert simclr("train", *words, "trainer.limit_train_batches=0.5") == 0
    assert (summary("run")["steps"], summary("run")["epochs"]) == (4, 2)  # 2 of 4 steps, twice
    with Path("run/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss_step"]]
    assert [(row["step"], row["epoch"]) for row in rows] == [("1", "0"), ("2", "0"), ("3", "1"), ("4", "1")]


def test_overfitting_repeats_the_same_images_in_other_views() -> None:
    data = small_data(batch=16)
    data.limit = 2
    seen: list[list[int]] = []
    shown: list[torch.Tensor] = []

    class Seen(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(batch["indices"].tolist())
            shown.append(batch["x_a"])
            return self.weight.sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, log_every_n_steps=1, enable_model_summary=False, **options
    )  # fmt: skip
    trainer.overfit_batches = 2
    trainer.fit(Seen(), datamodule=data)
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert not set(seen[0]) & set(seen[1])
    assert not torch.equal(shown[0], shown[2])


def test_a_score_counts_only_in_the_epoch_that_computed_it() -> None:
    stop = EarlyStopping("online/knn_top1", mode="max", patience=2)
    plain = {"callbacks": {"online": {"every_n_epochs": 3}, "hardness": {"every_n_steps": 0}}}
    watch = Watch({"callbacks.stop": stop}, plain)

    metrics = {"online/knn_top1": torch.tensor(0.5), "train/loss": torch.tensor(1.0)}
    fake: Any = SimpleNamespace(callback_metrics=metrics, current_epoch=0, should_stop=False, fast_dev_run=0)
    watch.on_train_epoch_start(fake, None)
    assert fake.callback_metrics.keys() == {"train/loss"}
    watch.on_train_epoch_end(fake, None)  # it is not due
    assert not stop._validate_condition_metric(fake.callback_metrics)  # and no error
    fake.current_epoch = 2
    with pytest.raises(UserError, match=r"no such metric\nthe metrics are train/loss"):
        watch.on_train_epoch_end(fake, None)


def test_devices_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    trainer = {"devices": 8, "accelerator": "auto", "num_nodes": 1}
    with pytest.raises(UserError, match=r"the CPU has 2 cores\nuse trainer.devices=1, or add trainer.accelerator=cpu"):
        device_count(OmegaConf.create({"trainer": trainer}))
    said = processes_note(OmegaConf.create({"trainer": {**trainer, "accelerator": "cpu"}}))
    assert str(said).startswith("8 CPU processes on 2 cores")
    assert "no GPU is found" in str(processes_note(OmegaConf.create({"trainer": {**trainer, "devices": 2}})))
    for devices, count in ((1, 1), ([0], 1), ("auto", 1)):
        cfg = OmegaConf.create({"trainer": {**trainer, "devices": devices}})
        assert (device_count(cfg), processes_note(cfg)) == (count, None)
    with pytest.raises(UserError, match="names GPUs, and none is found"):
        device_count(OmegaConf.create({"trainer": {**trainer, "devices": [1]}}))


def test_gpus_are_chosen_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    trainer = {"devices": [1, 3], "accelerator": "auto", "num_nodes": 1}
    assert device_count(OmegaConf.create({"trainer": trainer})) == 2
    with pytest.raises(UserError, match=r"has the GPUs 0,1,2,3"):
        device_count(OmegaConf.create({"trainer": {**trainer, "devices": [4]}}))


def test_float16_on_a_cpu_is_refused_before_there_is_a_folder(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "hydra.run.dir=run", "trainer.precision=16-mixed") == 1
    assert "use bf16-mixed or 32-true" in capsys.readouterr().err
    assert not Path("run").exists()


def test_the_options_of_ddp_replace_those_of_the_program() -> None:
    target = "trainer.strategy._target_=lightning.pytorch.strategies.DDPStrategy"
    made = make_strategy(compose([target, "trainer.strategy.bucket_cap_mb=7"]), "cpu", 2)
    assert isinstance(made, DDPStrategy)
    assert made._ddp_kwargs == {
        "gradient_as_bucket_view": True, "static_graph": True, "find_unused_parameters": False, "bucket_cap_mb": 7,
    }  # fmt: skip
    unused = make_strategy(compose(["trainer.strategy=ddp_find_unused_parameters_true"]), "cpu", 2)
    assert unused._ddp_kwargs["find_unused_parameters"]
    with pytest.raises(UserError, match=r"use trainer\.strategy=ddp"):
        make_strategy(compose(["trainer.strategy=single_device"]), "cpu", 2)


def test_the_weights_at_the_start_are_named_with_their_step(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*OVERRIDES, f"data.path={npz}", "trainer.max_steps=1"]
    assert simclr("train", *words, "hydra.run.dir=first") == 0
    for source in ("first", "first/checkpoints/last.ckpt", "first/exported"):
        capsys.readouterr()
        assert simclr("train", *words, f"model.weights={source}", "trainer.fast_dev_run=true") == 0
        assert f"model.weights: the encoder of {source} at step 1" in capsys.readouterr().out.replace("./", "")
