"""Lightning's own classes from the command line: each is on a list or refused with a reason, and none runs code."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import lightning as L
import lightning.pytorch.callbacks
import lightning.pytorch.profilers
import lightning.pytorch.strategies
import pytest
from changed_configs import put, refusal
from omegaconf import DictConfig

from simclr_lightning.app.config.arguments import SET_BY_PROGRAM, WHY_SET_BY_PROGRAM
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.keys import RULES
from simclr_lightning.app.config.rules import typed
from simclr_lightning.app.config.stock import (
    CALLBACKS,
    FILES,
    FOLDERS,
    OPTIMIZERS,
    PROFILERS,
    REFUSED,
    STRATEGIES,
    annotation_of,
    why_refused,
)
from simclr_lightning.app.config.stock_parts import direction, metric_names
from simclr_lightning.app.config.targets import resolve
from simclr_lightning.app.config.validate import check_config, check_run
from simclr_lightning.app.errors import LINES, UserError
from simclr_lightning.selection import SELECTABLE

PLACES = {"callbacks.mine": CALLBACKS, "trainer.profiler": PROFILERS, "trainer.strategy": STRATEGIES}
CALLBACK = "callbacks.mine._target_=lightning.pytorch.callbacks."
STOPPING = f"{CALLBACK}EarlyStopping callbacks.mine.monitor=train/loss "


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose([])


def refused(words: str) -> str:
    with pytest.raises(UserError) as caught:
        check_run(compose(words.split()))
    assert len(str(caught.value).splitlines()) <= LINES
    return str(caught.value)


# A value for each argument of the Trainer that is accepted; "auto" and null are those of the signature.
VALUES: dict[str, list[Any]] = {
    "accelerator": ["cpu"],
    "strategy": ["ddp", "ddp_find_unused_parameters_true", {"_target_": "lightning.pytorch.strategies.DDPStrategy"}],
    "devices": [2, [0], [0, 1], "auto"],
    "num_nodes": [2],
    "precision": ["bf16-mixed"],
    "fast_dev_run": [True, 2],
    "max_epochs": [3],
    "min_epochs": [1, None],
    "max_steps": [3],
    "min_steps": [1],
    "max_time": ["00:01:00:00", {"hours": 1}],
    "limit_train_batches": [3, 0.5, 1.0, None],
    "overfit_batches": [2, 0.1, 0],
    "log_every_n_steps": [1],
    "enable_progress_bar": [False],
    "enable_model_summary": [True],
    "gradient_clip_val": [0.5, 1, None],
    "gradient_clip_algorithm": ["norm", "value"],
    "deterministic": [True, "warn"],
    "benchmark": [True, None],
    "inference_mode": [False],
    "profiler": ["simple", None, {"_target_": "lightning.pytorch.profilers.PyTorchProfiler", "with_stack": True}],
    "detect_anomaly": [True],
    "sync_batchnorm": [True],
    "enable_autolog_hparams": [False],
}


def test_every_argument_of_the_trainer_is_accepted_or_has_a_reason(composed: DictConfig) -> None:
    names = inspect.signature(L.Trainer).parameters.keys()
    no = {key.removeprefix("trainer.") for key in SET_BY_PROGRAM if key.startswith("trainer.")}
    assert names == VALUES.keys() | no
    assert not VALUES.keys() & no
    for name, values in VALUES.items():
        for value in values:
            check_config(put(copy.deepcopy(composed), f"trainer.{name}", value))
    for name in no:
        reason = WHY_SET_BY_PROGRAM.get(f"trainer.{name}") or SET_BY_PROGRAM[f"trainer.{name}"]
        assert reason in refusal(put(copy.deepcopy(composed), f"trainer.{name}", 2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("detect_anomaly", 1), ("max_time", "5m"), ("max_time", 3), ("limit_train_batches", 0),
        ("limit_train_batches", 1.5), ("overfit_batches", -1), ("fast_dev_run", 0.5), ("gradient_clip_val", "1"),
        ("gradient_clip_algorithm", "l1"), ("profiler", "smple"), ("strategy", "dpp"), ("log_every_n_steps", 0),
        ("min_epochs", 0.5), ("benchmark", "yes"),
    ],
)  # fmt: skip
def test_an_argument_of_the_trainer_has_the_type_of_its_signature(name: str, value: Any, composed: DictConfig) -> None:
    assert f"trainer.{name}" in refusal(put(copy.deepcopy(composed), f"trainer.{name}", value))


def test_clipping_with_float16_is_refused(composed: DictConfig) -> None:
    put(put(changed := copy.deepcopy(composed), "trainer.precision", "16-mixed"), "trainer.gradient_clip_val", 1)
    assert "use trainer.precision=bf16-mixed" in refusal(changed)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("fsdp", "whole weights"), ("deepspeed_stage_2", "whole weights"), ("ddp_spawn", "starts the processes"),
     ("ddp_notebook", "starts the processes"), ("xla", "CPUs and GPUs"), ("model_parallel", "whole weights")],
)  # fmt: skip
def test_a_strategy_that_cannot_work_is_refused_with_its_reason(name: str, reason: str) -> None:
    assert reason in refused(f"trainer.strategy={name}")


@pytest.mark.parametrize(
    "module", [lightning.pytorch.callbacks, lightning.pytorch.profilers, lightning.pytorch.strategies]
)
def test_every_class_of_lightning_is_on_a_list_or_refused_with_a_reason(module: Any) -> None:
    place, names = next((p, n) for p, n in PLACES.items() if next(iter(n)).startswith(f"{module.__name__}."))
    for name in module.__all__:
        target = f"{module.__name__}.{name}"
        assert (target in names) != (name in REFUSED), target
        if name in REFUSED:
            assert REFUSED[name] in refused(f"{place}._target_={target}")
            assert "; " in REFUSED[name] or "need" in REFUSED[name] or "." in REFUSED[name] or "SimCLR" in REFUSED[name]


@pytest.mark.parametrize("place", PLACES)
def test_a_listed_argument_has_plain_values_only(place: str) -> None:
    for target, arguments in PLACES[place].items():
        made = resolve(target, at=place)
        assert made is not None, target
        for argument in arguments:
            rule = typed(annotation_of(made, argument))
            assert rule.says != "left out", (target, argument)
            for value in (print, object(), {"_target_": "os.system"}, [{"_target_": "os.system"}]):
                if not (isinstance(value, dict) and "by name" in rule.says):  # Timer's {hours: 1}
                    assert not rule.accepts(value), (target, argument)


def test_a_listed_argument_that_names_a_file_is_limited_to_the_folder_of_the_run() -> None:
    texts = {argument for names in PLACES.values() for arguments in names.values() for argument in arguments}
    assert {name for name in texts if re.search(r"path|(?<!pro)file|dir", name)} == FOLDERS | FILES


@pytest.mark.parametrize("path", ["/tmp/x", "../x", "a/../../x", "~/x", ""])
@pytest.mark.parametrize(
    "words",
    [
        f"{CALLBACK}ModelCheckpoint callbacks.mine.dirpath=",
        f"{CALLBACK}ModelCheckpoint callbacks.mine.filename=",
        f"{CALLBACK}OnExceptionCheckpoint callbacks.mine.dirpath=",
        "trainer.profiler._target_=lightning.pytorch.profilers.SimpleProfiler trainer.profiler.dirpath=",
        "trainer.profiler._target_=lightning.pytorch.profilers.PyTorchProfiler trainer.profiler.filename=",
    ],
)
def test_a_path_outside_the_folder_of_the_run_is_refused(words: str, path: str) -> None:
    *rest, last = words.split()
    with pytest.raises(UserError, match="must be a path inside the run's folder"):
        check_run(compose([*rest, f"{last}'{path}'"]))


def test_the_folder_of_the_programs_checkpoints_is_not_for_others() -> None:
    for path in ("checkpoints", "more/checkpoints"):
        assert "use callbacks.mine.dirpath=more" in refused(f"{CALLBACK}ModelCheckpoint callbacks.mine.dirpath={path}")


HOSTILE = {
    f"{CALLBACK}LambdaCallback callbacks.mine.on_fit_start=os.abort": "takes functions",
    "callbacks.mine._target_=os.system callbacks.mine.command=CANARY": "may not make this",
    "callbacks.mine._target_=torch.optim.SGD": "may not make this",  # allowed elsewhere
    "callbacks.mine._target_=lightning.pytorch.loggers.CSVLogger callbacks.mine.save_dir=CANARY": "may not make this",
    "callbacks.mine={a:1}": "callbacks.mine.a: unknown key",
    "+callbacks={mine:{deep:{_target_:os.system}}}": "callbacks",
    f"{STOPPING}callbacks.mine.patience={{_target_:os.system,command:CANARY}}": "os.system",
    f"{STOPPING}callbacks.mine._partial_=true": "_partial_",
    f"{STOPPING}callbacks.mine._args_=[CANARY]": "_args_",
    "loss._target_=lightning.pytorch.callbacks.ModelCheckpoint": "may not make this",
    "model.encoder._target_=lightning.pytorch.profilers.SimpleProfiler": "may not make this",
    "trainer.profiler._target_=lightning.pytorch.callbacks.Timer": "may not make this",
    "trainer.strategy._target_=lightning.pytorch.strategies.DDPStrategy trainer.strategy.ddp_comm_hook=x": "may set",
    "trainer.profiler._target_=lightning.pytorch.profilers.PyTorchProfiler trainer.profiler.schedule=x": "may set",
    "early_stopping=default early_stopping._target_=lightning.pytorch.callbacks.Timer": "may not make this",
    "optimizer._target_=torch.load": "may not make this",
    "optimizer=timm optimizer.opt=os.system": "no such optimizer",
}


@pytest.mark.parametrize("words", HOSTILE)
def test_a_hostile_configuration_runs_nothing(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert HOSTILE[words] in refused(words.replace("CANARY", str(tmp_path / "canary")))
    assert not list(tmp_path.iterdir())


def test_the_metrics_are_listed_where_one_does_not_exist() -> None:
    said = refused(f"{CALLBACK}EarlyStopping callbacks.mine.monitor=online/knn_top")
    assert "did you mean online/knn_top1?" in said
    assert "online/held_out_loss, " in said
    assert "callbacks.mine.monitor is missing" in refused(f"{CALLBACK}EarlyStopping")
    off = "callbacks.online.every_n_epochs=0"
    assert "no such metric" in refused(f"{off} early_stopping=default")


def test_the_direction_of_a_metric_is_that_of_its_score(composed: DictConfig) -> None:
    for name in metric_names({key: dict(composed[key]) for key in ("callbacks",)}):
        score = name.partition("/")[2]
        if score in SELECTABLE:
            assert direction(name) == ("max" if SELECTABLE[score] > 0 else "min")
    assert [direction(name) for name in ("train/loss", "train/loss_step", "train/contrastive_accuracy")] == [
        "min", "min", "max",
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_is_accepted(name: str) -> None:
    check_run(compose([f"optimizer._target_=torch.optim.{name}"]))


def test_every_other_optimizer_of_torch_is_refused_with_its_reason() -> None:
    import torch

    others = {name for name, made in vars(torch.optim).items() if inspect.isclass(made)} - {*OPTIMIZERS}
    for name in others:
        if issubclass(getattr(torch.optim, name), torch.optim.Optimizer):
            reason = why_refused(f"torch.optim.{name}")
            assert reason is not None
            assert "use optimizer=" in reason
            assert reason in refused(f"optimizer._target_=torch.optim.{name}")


@pytest.mark.parametrize("key", ["ema", "data.path", "model.weights", "micro_batch_size", "trainer.max_time"])
def test_none_of_python_is_refused_with_null(key: str) -> None:
    assert f"write {key}=null" in refused(f"{key}=None")


def test_precisions_below_float32_for_the_weights_are_refused_with_the_reason() -> None:
    for name in ("16-true", "bf16-true", "64-true"):
        assert "the weights stay float32" in refused(f"trainer.precision={name}")


def test_the_keys_of_the_table_are_typed_before_the_signature() -> None:
    assert {key for key in RULES if key.startswith("trainer.")} <= {f"trainer.{name}" for name in VALUES} | {
        "trainer._target_"
    }
