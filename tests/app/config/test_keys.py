"""The table of keys: it has every key of conf/, and each refuses values outside its range."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from changed_configs import put, refusal
from omegaconf import DictConfig

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.keys import EVALUATION_RULES, HYDRA_RULES, RULES
from simclr_lightning.app.config.plain import flatten, unresolved
from simclr_lightning.app.config.rules import CHECKED_BY_ITSELF
from simclr_lightning.app.config.validate import check_config, check_evaluation, check_targets
from simclr_lightning.app.errors import UserError
from simclr_lightning.data import SOURCES

CONF = Path(__file__).parents[3] / "conf"
NAN, INF = float("nan"), float("inf")
GROUPS = ("model", "data", "views", "loss", "optimizer", "schedule", "trainer", "callbacks", "early_stopping", "logger")


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """A configuration that is accepted."""
    loggers = "logger=[csv,tensorboard,mlflow,comet,wandb]"
    composed = compose(["optimizer=sgd", "data=folder", "data.path=x", loggers, "early_stopping=default"])
    check_config(composed)
    return composed


@pytest.fixture(scope="module")
def options() -> dict[str, DictConfig]:
    """The configuration with each option of each group, by GROUP=OPTION."""
    found = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        if path.parent.name != "hydra":
            group, option = path.parent.name, f"{path.parent.name}={path.stem}"
            target = {"model": "model.encoder", "data": "data.dataset"}.get(group, group)
            own = [f"{target}._target_=simclr_lightning.encoders.resnet"] if path.stem == "custom" else []
            found[option] = compose([option, "data.path=x", *own])
    return found


def test_every_option_of_every_group_is_accepted(options: dict[str, DictConfig]) -> None:
    assert {option.partition("=")[0] for option in options} >= {*GROUPS, "experiment"}
    for composed in options.values():
        check_config(composed)
        check_targets(composed)


def test_the_table_of_ranges_has_every_key_of_every_option_and_no_other(options: dict[str, DictConfig]) -> None:
    found: set[str] = set()
    for option, composed in options.items():
        if option.partition("=")[0] in GROUPS:
            found |= flatten(unresolved(composed)).keys()
    assert found == RULES.keys()
    paths = [f"paths.{name}=x" for name in SOURCES]
    evaluated = flatten(unresolved(compose(paths, name="evaluate"))).keys()
    known = {key for key in EVALUATION_RULES if not key.startswith("model.")} - found
    assert evaluated - found == known


NOT_WHOLE = [0.5, "4", True, None, NAN, [4], -2]
NOT_NUMBERS = ["0.1", "abc", True, None, NAN, INF, -INF, 1e300, [0.1], {"a": 1}, -0.1]


BAD: dict[str, list[Any]] = {
    "seed": [*NOT_WHOLE, 2**32],
    "micro_batch_size": [0, 1.5, "4", True],
    "compile": ["yes", 1, None],
    "tf32": ["yes", 1, None],
    "keep_pages": ["yes", 1, None],
    "loss.sigma": [0, -0.5, "0.5", True, NAN, INF],
    "loss.tau_plus": [1, 1.5, *NOT_NUMBERS],
    "loss.beta": NOT_NUMBERS,
    "pictures": ["yes", 1, None],
    "ema": [0, 1, 1.5, -0.1, "0.9", True, NAN],
    "ckpt_path": ["", 3, True, ["a"]],
    "force": [1, "yes", None],
    "dry_run": [0, "no", None],
    "preflight": [0, "no", None, 2.0],
    "debug": [1, "true", None],
    "trusted": ["mypkg", None, [3]],
    "model.weights": ["", 3, False],
    "model.channels_last": [1, "yes", None],
    "static_graph": [1, "yes", None],
    "model.encoder.depth": [0, 19, 18.0, "18", True, None],
    "model.encoder.width": [0, -1, 0.3, "2", True, None, NAN, INF, 65],
    "model.encoder.stem": ["", "cifar10", None, 3],
    "model.encoder.zero_init_last": [1, "yes", None],
    "model.encoder.mean": [0.5, [0.5], "x", [0.5, 0.5, "a"], [0.5, 0.5, 0.5]],
    "model.encoder.std": [0.5, [0.5, 0.5, 0], [0.5, 0.5, 0.5]],
    "model.projector.hidden_dim": [0, 1.5, "64", True, 10**12],
    "model.projector.out_dim": [*NOT_WHOLE, 0, 10**12],
    "model.projector.layers": [*NOT_WHOLE, 4],
    "data.path": ["", 3, True],
    "data.batch_size": [*NOT_WHOLE, 0, 1],
    "data.num_workers": [*NOT_WHOLE, 1025],
    "data.resident": ["yes", 1, None],
    "data.dataset.labels": [1, "no", None],
    "data.dataset.on_corrupt": ["ignore", None, True],
    "data.dataset.max_skipped": [-1, 1.5, None],
    "data.dataset.max_pixels": [0, 178_956_971, "many"],
    "data.dataset.full_scale": [0, -1, "12 bits"],
    "data.dataset.image": [3, ["a"]],
    "data.dataset.label": [3, ["a"]],
    **{f"data.dataset.{part}": ["", 3, True, ["train"]] for part in ("train", "val", "test")},
    "views.size": [*NOT_WHOLE, 0, 100_000, 10**23],
    "views.crop": ["middle", None],
    "views.area": [[0, 1], [0.5, 1.5], [0.5, 0.1], [0.5], 0.5, "x", [NAN, 1], None],
    "views.aspect": [[0, 1], [2, 1], [1, INF], None],
    "views.interpolation": ["nearest", None],
    **{f"views.{name}": [-0.1, 1.1, "x", None, True, NAN] for name in ("flip", "jitter", "grey", "blur", "solarise")},
    "views.strength": [-1, 3, "x", None, NAN],
    "views.brightness": ["mul", None],
    "views.blur_sigma": [[0, 2], [2, 0.1], 0.1],
    "views.blur_kernel": [-0.1, 2, None],
    "loss.temperature": [*NOT_NUMBERS, 0],
    "optimizer.lr": [*NOT_NUMBERS, 0],
    "optimizer.momentum": [*NOT_NUMBERS, 1, 1.5],
    "optimizer.weight_decay": NOT_NUMBERS,
    "optimizer.nesterov": [1, "yes", None],
    "optimizer.fused": [1, "yes", None],
    "schedule.rule": ["cosine", None, True],
    "schedule.warmup_epochs": NOT_NUMBERS,
    "trainer.max_epochs": [*NOT_WHOLE, 0, -1, 1000.0],
    "trainer.max_steps": [0, -2, 1.5, "10", True, None],
    "trainer.accelerator": ["cud", "tpu", None, 3],
    "trainer.devices": [0, -2, 1.5, "2", "all", True, None, [], [0, 0], [-1], ["0"]],
    "trainer.num_nodes": [*NOT_WHOLE, 0],
    "trainer.sync_batchnorm": [0, -1, 1.5, "4", None, [2]],
    "trainer.precision": ["fp16", "64-true", "bf16-true", 64, 8, None, True],
    "trainer.deterministic": [1, "yes"],
    "callbacks.online.every_n_epochs": NOT_WHOLE,
    "callbacks.online.k": [*NOT_WHOLE, 0],
    "callbacks.online.bank_at_most": [*NOT_WHOLE, 0],
    "callbacks.online.views_at_most": [*NOT_WHOLE, 2],
    "callbacks.online.probe": [1, "yes", None],
    "select": ["rank", "test", None, True, 1],
    "callbacks.checkpoints.every_n_epochs": [*NOT_WHOLE, 0],
    "callbacks.checkpoints.every_n_steps": [0, 1.5, "4", True],
    "callbacks.metrics.every_n_steps": [*NOT_WHOLE, 0],
    "callbacks.hardness.every_n_steps": NOT_WHOLE,
    "logger.name": ["tb", None, True],
    "logger.project": ["", None, 3],
    "logger.entity": ["", 3],
    "logger.group": ["", 3],
    "logger.job_type": ["", None, 3],
    "logger.tags": ["tiny", [""], [3], None],
    "logger.mode": ["on", None],
    "logger.tensorboard.flush_secs": [*NOT_WHOLE, 0],
    **{f"logger.{name}.prefix": [1, None] for name in ("tensorboard", "mlflow", "comet")},
    "logger.mlflow.experiment_name": ["", None, 3],
    "logger.mlflow.run_name": ["", 3],
    "logger.mlflow.tracking_uri": ["", 3, "file:///tmp/mlruns", "/tmp", "sqlite:///a.db"],  # outside the run's folder
    "logger.comet.project": ["", None, 3],
    "logger.comet.workspace": ["", 3],
    "logger.comet.online": [1, "yes", None],
    "early_stopping.monitor": ["", 3, "knn", None],
    "early_stopping.mode": ["maximum", None, 1],
    "early_stopping.patience": [*NOT_WHOLE, 0],
    "early_stopping.min_delta": NOT_NUMBERS,
}


# Keys that the configuration of `composed` does not have: an option that has them.
OPTION = {
    **dict.fromkeys(("data.dataset.image", "data.dataset.label"), "data=hf"),
    "loss.sigma": "loss=dcl",
    **dict.fromkeys(("loss.tau_plus", "loss.beta"), "loss=debiased"),
}


@pytest.mark.parametrize("key", BAD)
def test_a_wrong_value_is_refused_with_its_key(key: str, composed: DictConfig) -> None:
    base = compose([OPTION[key], "data.path=x"]) if key in OPTION else composed
    for value in BAD[key]:
        message = refusal(put(copy.deepcopy(base), key, value))
        part = key.rpartition(".")[2]
        assert part in message, (value, message)
        expected = ("must be", "given", "go together", "no such metric")
        assert any(text in message for text in expected), (value, message)


BAD_HYDRA: dict[str, list[Any]] = {
    "launcher.jobs": [*NOT_WHOLE, 0],
    "launcher.cluster": ["pbs", None, True],
    **{f"launcher.{name}": ["", 3, True] for name in ("partition", "account", "qos", "constraint")},
    **{f"launcher.{name}": [*NOT_WHOLE, 0] for name in ("minutes", "seconds_to_save")},
    "launcher.requeue": NOT_WHOLE,
    **{f"launcher.{name}": [0, 1.5, "4", True] for name in ("cpus", "memory_gb")},
    "launcher.setup": ["module load cuda", [3], None],
    "launcher._target_": ["hydra._internal.core_plugins.basic_launcher.BasicLauncher"],
    "launcher.options": ["mail-type=END", [1]],
    "sweeper.max_batch_size": [0, -1, 1.5, "4", True],
    "sweeper.params": ["x", [1], {"seed": [0, 1]}, {"loss": {"temperature": 1}}],
    "sweeper.n_jobs": [*NOT_WHOLE, 0],
    "sweeper.storage": ["x", 1, {"url": "sqlite:///x"}],
    "sweeper.study_name": ["", 3],
    "sweeper.sampler": ["x", None, 3],
    "sweeper.sampler.seed": [-1, 2**32],
    "sweeper.search_space": ["x", {"seed": 1}],
    "sweeper.n_trials": [*NOT_WHOLE, 0],
    "sweeper.direction": ["minimize", None],
    "sweeper.max_failure_rate": [-0.1, 1.1, "x", None],
    "sweeper.custom_search_space": ["os.system"],
}


@pytest.fixture(scope="module")
def sweeping() -> DictConfig:
    """A configuration of a sweep that is accepted."""
    composed = compose(["hydra/launcher=slurm", "hydra/sweeper=optuna"])
    check_config(composed)
    return composed


@pytest.mark.parametrize("key", HYDRA_RULES)
def test_a_wrong_value_of_a_sweep_is_refused_with_its_key(key: str, sweeping: DictConfig) -> None:
    for value in BAD_HYDRA[key]:
        assert f"hydra.{key}=" in refusal(put(copy.deepcopy(sweeping), f"hydra.{key}", value))
    part = key.partition(".")[0]
    assert f"choose one of its options with hydra/{part}=" in refusal(
        put(copy.deepcopy(sweeping), f"hydra.{part}", None)
    )


def test_every_key_has_wrong_values_above() -> None:
    tested_elsewhere = {
        "model.encoder.name",
        "model.encoder.pretrained",
        "model.encoder.size",
        "optimizer.opt",
        "optimizer.trust_coefficient",
    }
    keys = {key for key in RULES if not key.endswith(("_target_", "_partial_"))}
    assert keys == BAD.keys() | tested_elsewhere
    assert {key for key, rule in RULES.items() if rule is CHECKED_BY_ITSELF} < BAD.keys()


LISTS = [[], 3, "x", [None], {"a": 1}]
RATES = [0, -1, "x", None, True, NAN, 1e300, [], [0.1, 0], [0.1, 0.1], [0.1, 1e300]]


BAD_EVALUATION: dict[str, list[Any]] = {
    "protocol": [*LISTS, ["knn", "knn"], "linaer", True],
    "transfer": [3, "x", [None], ["cifar10", "cifar10"], None],
    **{f"paths.{path.stem}": ["", 3, True] for path in (CONF / "data").glob("[!c]*.yaml")},
    **{f"paths.cifar{n}": ["", 3, True] for n in (10, 100)},
    "untrained": [1, "yes", None],
    "select_on": ["test", "train", None, True],
    "seeds": [*LISTS, [0, 0], [-1], [1.5], 0, None],
    "knn.k": [*NOT_WHOLE, 0],
    "knn.ks": [*LISTS, [0], [1, 1], None],
    "knn.temperature": [*NOT_NUMBERS, 0],
    "knn.weighting": ["none", None, True],
    **{f"{name}.epochs": [*NOT_WHOLE, 0] for name in ("linear", "finetune")},
    **{f"{name}.batch_size": [*NOT_WHOLE, 0, 1] for name in ("linear", "finetune", "semi")},
    **{f"{name}.lr": RATES for name in ("linear", "finetune")},
    "semi.fractions": [*LISTS, [0], [1], [0.1, 0.1], [0.1, 0.10000001], 0.1, None],
    "semi.epochs": [3, "x", [0], [1.5], None, [3]],
    "semi.lr": [*NOT_NUMBERS, 0, [0.1]],
    "semi.start": [0, 4, "z", 1.5, None, True],
    "accelerator": ["tpu", "gpu", None, 3],
    "precision": ["fp16", None, 32],
    "cache": [1, "no", None],
    "trusted": BAD["trusted"],
}


def test_every_key_of_an_evaluation_refuses_wrong_values() -> None:
    composed = compose([], name="evaluate")
    check_evaluation(composed)
    own = {key for key in EVALUATION_RULES if key not in RULES} | {"trusted"}
    assert own == BAD_EVALUATION.keys()
    for key, values in BAD_EVALUATION.items():
        for value in values:
            with pytest.raises(UserError) as caught:
                check_evaluation(put(copy.deepcopy(composed), key, value))
            assert caught.value.code == 2
            assert key.rpartition(".")[2] in str(caught.value), (key, value)
    for key, value in (
        ("protocol", "knn"),
        ("linear.lr", [0.1, 1]),
        ("semi.start", 1),
        ("seeds", [3, 0]),
        ("knn.k", 1),
    ):
        check_evaluation(put(copy.deepcopy(composed), key, value))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", [0, 2**32 - 1]),
        ("loss.temperature", [0.001, 0.005, 1, 10.0]),
        ("data.batch_size", [2, 8192]),
        ("micro_batch_size", [None, 2, 32, 64]),
        ("trainer.max_steps", [-1, 1]),
        ("trainer.devices", [1, 2, -1, "auto"]),
        ("trainer.precision", ["bf16-mixed", 32]),
        ("optimizer.momentum", [0, 0.99]),
        ("optimizer.weight_decay", [0, 1e-4]),
        ("schedule.warmup_epochs", [0, 0.5, 1000]),
        ("model.projector.layers", [0, 3]),
        ("model.encoder.width", [0.25, 4]),
        ("callbacks.online.every_n_epochs", [0]),
        ("views.area", [[1, 1], [0.2, 0.9]]),
    ],
)
def test_the_ends_of_ranges_are_inside(key: str, values: list[Any], composed: DictConfig) -> None:
    for value in values:
        changed = put(copy.deepcopy(composed), "early_stopping", None)  # whose metric may be off
        check_config(put(changed, key, value))


def test_lars_and_timm(composed: DictConfig) -> None:
    lars = compose(["optimizer=lars"])
    for value in (0, -1, "x", NAN, 1e300):
        assert "trust_coefficient" in refusal(put(copy.deepcopy(lars), "optimizer.trust_coefficient", value))
    timm = compose(["model=timm"])
    assert "did you mean convnext_tiny" in refusal(put(timm, "model.encoder.name", "convnext_tinny"))
    assert "model.encoder.name" in refusal(put(timm, "model.encoder.name", ""))
    put(timm, "model.encoder.name", "resnet18")
    assert "model.encoder.pretrained" in refusal(put(timm, "model.encoder.pretrained", "yes"))
    put(timm, "model.encoder.pretrained", False)
    assert "model.encoder.size=0" in refusal(put(timm, "model.encoder.size", 0))
    check_config(compose(["model=timm", "+model.encoder.depth=2"]))  # blocks of a ViT; ResNets have 10, 18, ...
    theirs = compose(["model=torchvision"])
    assert "did you mean convnext_tiny" in refusal(put(theirs, "model.encoder.name", "convnext_tinny"))
