"""Checks before any work: every key's range, the batch's arithmetic, and what a configuration may make."""

from __future__ import annotations

import contextlib
import copy
import importlib
import pydoc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.instantiate import make
from simclr_lightning.app.config.keys import EVALUATION_RULES, HYDRA_RULES, RULES
from simclr_lightning.app.config.plain import from_plain
from simclr_lightning.app.config.rules import CHECKED_BY_ITSELF
from simclr_lightning.app.config.targets import ALLOWED, HYDRA_ALLOWED, resolve
from simclr_lightning.app.config.validate import check_config, check_devices, check_evaluation, check_targets
from simclr_lightning.app.errors import LINES, UserError

CONF = Path(__file__).parents[3] / "conf"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose(["optimizer=sgd", "data=folder", "data.path=x", "logger=wandb"])


@pytest.fixture
def cfg(composed: DictConfig) -> DictConfig:
    return copy.deepcopy(composed)


def put(cfg: DictConfig, key: str, value: Any) -> DictConfig:
    """Set a value, or a whole node, as a file of conf/ could."""
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return cfg


def refusal(cfg: DictConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_config(cfg)
    assert caught.value.code == 2
    assert len(str(caught.value).splitlines()) <= LINES
    return str(caught.value)


# -- ranges -------------------------------------------------------------------------------------------------


def test_every_option_of_every_group_passes() -> None:
    groups = ("model", "data", "views", "loss", "optimizer", "schedule", "trainer", "callbacks", "logger", "experiment")
    for group in groups:
        for path in (CONF / group).glob("*.yaml"):
            composed = compose([f"{group}={path.stem}", "data.path=x"])
            check_config(composed)
            check_targets(composed)


NOT_WHOLE = [0.5, "4", True, None, NAN, [4], -2]
NOT_NUMBERS = ["0.1", "abc", True, None, NAN, INF, -INF, 1e300, [0.1], {"a": 1}, -0.1]
BAD: dict[str, list[Any]] = {
    "seed": [*NOT_WHOLE, 2**32],
    "micro_batch_size": [0, 1.5, "4", True],
    "compile": ["yes", 1, None],
    "tf32": ["yes", 1, None],
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
    "optimizer.fused": [1, "yes", False, None],  # NaN would pass into the weights
    "schedule.rule": ["cosine", None, True],
    "schedule.warmup_epochs": NOT_NUMBERS,
    "trainer.max_epochs": [*NOT_WHOLE, 0, -1, 1000.0],
    "trainer.max_steps": [0, -2, 1.5, "10", True, None],
    "trainer.accelerator": ["cud", "tpu", None, 3],
    "trainer.devices": [0, -2, 1.5, "2", "all", True, None, [0]],
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
}


@pytest.mark.parametrize("key", BAD)
def test_a_wrong_value_is_refused_with_its_key(key: str, composed: DictConfig) -> None:
    check_config(composed)
    for value in BAD[key]:
        message = refusal(put(copy.deepcopy(composed), key, value))
        part = key.rpartition(".")[2]
        assert part in message, (value, message)
        assert "must be" in message or "given" in message or "go together" in message, (value, message)


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
    return compose(["hydra/launcher=slurm", "hydra/sweeper=optuna"])


@pytest.mark.parametrize("key", HYDRA_RULES)
def test_a_wrong_value_of_a_sweep_is_refused_with_its_key(key: str, sweeping: DictConfig) -> None:
    check_config(sweeping)
    for value in BAD_HYDRA[key]:
        assert f"hydra.{key}=" in refusal(put(copy.deepcopy(sweeping), f"hydra.{key}", value))
    part = key.partition(".")[0]
    assert f"choose it by hydra/{part}=" in refusal(put(copy.deepcopy(sweeping), f"hydra.{part}", None))


def test_every_sampler_of_a_search_has_a_fixed_seed() -> None:
    pytest.importorskip("optuna")
    for name in ("tpe", "random", "cmaes", "nsgaii", "grid"):
        composed = compose(["hydra/sweeper=optuna", f"hydra/sweeper/sampler={name}"])
        check_config(composed)
        check_targets(composed)
        assert composed.hydra.sweeper.sampler.get("seed") == (None if name == "grid" else 0)  # a grid draws nothing
    assert compose(["hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=3"]).hydra.sweeper.sampler.seed == 3


def test_wandb_by_its_name_alone_is_refused() -> None:
    message = refusal(compose(["logger.name=wandb"]))
    assert "logger.mode" in message
    assert "logger=wandb" in message
    check_config(compose(["logger.name=tensorboard"]))


@pytest.mark.parametrize("value", ["-1", "true", "nan", "mypkg", "null"])
def test_trusted_that_is_no_list_is_refused(value: str) -> None:
    for name, check in (("train", check_config), ("evaluate", check_evaluation)):
        with pytest.raises(UserError, match=r"trusted=.*must be a list of packages"):
            check(compose([f"trusted={value}"], name=name))


def test_an_optimiser_that_lets_nan_pass_is_refused(cfg: DictConfig) -> None:
    for name in ("SGD", "Adam", "AdamW", "Adagrad"):
        put(cfg, "optimizer", {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": 0.1})
        assert "optimizer.fused must be true" in refusal(cfg)
        check_config(put(cfg, "optimizer.fused", True))
    with pytest.raises(UserError, match=r"torch\.optim\.NAdam"):  # it has no fused step
        check_targets(put(cfg, "optimizer", {"_target_": "torch.optim.NAdam", "_partial_": True, "lr": 0.1}))


def test_every_key_has_wrong_values_above() -> None:
    tested_elsewhere = {"model.encoder.name", "model.encoder.pretrained", "optimizer.trust_coefficient"}
    keys = {key for key in RULES if not key.endswith(("_target_", "_partial_"))}
    assert keys == BAD.keys() | tested_elsewhere
    assert {key for key, rule in RULES.items() if rule is CHECKED_BY_ITSELF} < BAD.keys()


LISTS = [[], 3, "x", [None], {"a": 1}]
RATES = [0, -1, "x", None, True, NAN, 1e300, [], [0.1, 0], [0.1, 0.1], [0.1, 1e300]]
BAD_EVALUATION: dict[str, list[Any]] = {
    "protocol": [*LISTS, ["knn", "knn"], "linaer", True],
    "transfer": [3, "x", [None], ["cifar10", "cifar10"], None],
    **{f"paths.{name}": ["", 3, True] for name in sorted(path.stem for path in (CONF / "data").glob("*.yaml"))},
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
        check_config(put(copy.deepcopy(composed), key, value))


def test_the_message_says_key_value_and_range(cfg: DictConfig) -> None:
    assert (
        refusal(put(cfg, "loss.temperature", 0)) == "loss.temperature=0: it must be a number above 0 and at most 1,000"
    )


def test_lars_and_timm(composed: DictConfig) -> None:
    lars = compose(["optimizer=lars"])
    for value in (0, -1, "x", NAN, 1e300):
        assert "trust_coefficient" in refusal(put(copy.deepcopy(lars), "optimizer.trust_coefficient", value))
    timm = compose(["model=timm"])
    assert "did you mean convnext_tiny" in refusal(put(timm, "model.encoder.name", "convnext_tinny"))
    assert "model.encoder.name" in refusal(put(timm, "model.encoder.name", ""))
    put(timm, "model.encoder.name", "resnet18")
    assert "model.encoder.pretrained" in refusal(put(timm, "model.encoder.pretrained", "yes"))


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("seed", "seed is missing"),
        ("trainer.max_epochs", "trainer.max_epochs is missing"),
        ("trainer", "is missing"),
        ("model.encoder", "is missing"),
    ],
)
def test_a_missing_key_is_named(key: str, part: str, cfg: DictConfig) -> None:
    node, _, last = key.rpartition(".")
    with open_dict(cfg):
        del (OmegaConf.select(cfg, node) if node else cfg)[last]
    assert part in refusal(cfg)


def test_a_node_that_is_a_value_and_a_value_that_is_a_node(cfg: DictConfig) -> None:
    assert "model.encoder=5: it must have parts" in refusal(put(copy.deepcopy(cfg), "model.encoder", 5))
    assert "has no parts" in refusal(put(cfg, "seed", {"a": 1}))


@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("trainer.accumulate_grad_batches", "micro_batch_size"),
        ("trainer.logger", "logger"),
        ("trainer.callbacks", "callbacks"),
        ("data.recipe", "views"),
        ("data.seed", "seed"),
    ],
)
def test_what_the_program_sets_is_refused_with_the_key_to_use(key: str, instead: str, cfg: DictConfig) -> None:
    message = refusal(put(cfg, key, 2))
    assert key in message
    assert f"use {instead}" in message


def test_accumulation_is_refused_because_it_adds_no_negatives(cfg: DictConfig) -> None:
    message = refusal(put(cfg, "trainer.accumulate_grad_batches", 4))
    assert "no negatives" in message
    assert "use micro_batch_size" in message


def test_micro_batches_must_divide(cfg: DictConfig) -> None:
    put(put(cfg, "data.batch_size", 256), "micro_batch_size", 48)
    assert "micro_batch_size=48 does not divide data.batch_size=256 (256 = 5 * 48 + 16); use 32" in refusal(cfg)
    put(put(cfg, "micro_batch_size", 2), "trainer.devices", 4)
    assert "is not divisible by 4 devices" in refusal(cfg)
    put(cfg, "micro_batch_size", 4)
    assert "leaves 1 image on each of 4 devices" in refusal(cfg)
    put(cfg, "micro_batch_size", 512)
    assert "larger than data.batch_size=256" in refusal(cfg)


def test_the_optimisers_own_checks_run_too(cfg: DictConfig) -> None:
    put(cfg, "optimizer.momentum", 0)
    assert "Nesterov" in refusal(put(cfg, "optimizer.nesterov", True))
    adamw = compose(["optimizer=adamw", "+optimizer.betas=[2,3]"])
    assert "beta" in refusal(adamw)


def test_a_warm_up_longer_than_the_run_is_fine(cfg: DictConfig) -> None:
    check_config(put(put(cfg, "schedule.warmup_epochs", 500), "trainer.max_steps", 1))


def test_the_batch_must_divide(cfg: DictConfig) -> None:
    message = refusal(put(put(cfg, "trainer.devices", 3), "data.batch_size", 256))
    assert "data.batch_size=256 does not divide by 3 devices (256 = 3 * 85 + 1); use 255 or 258" in message
    check_devices(256, 2, 2)
    check_devices(255, "auto")
    check_devices(255, -1)
    with pytest.raises(UserError, match="6 devices"):
        check_devices(256, 3, 2)
    with pytest.raises(UserError, match="leaves 1 image"):
        check_devices(4, 4)


def test_a_users_own_part_is_not_held_to_our_ranges(cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": "mypkg.Net", "depth": 7, "width": "wide"})
    put(cfg, "schedule", {"_target_": "mypkg.schedule", "rule": "mine"})
    check_config(cfg)


# -- targets ------------------------------------------------------------------------------------------------


def call(target: Any, *args: Any, **keywords: Any) -> dict[str, Any]:
    return {"_target_": target, **({"_args_": list(args)} if args else {}), **keywords}


def hostile(canary: Path) -> dict[str, dict[str, Any]]:
    """Nodes that write the canary file, or try to, when they are made."""
    touch, shell, code = ["touch", str(canary)], f"touch '{canary}'", f"open({str(canary)!r}, 'w')"
    name, folder, source = canary.name, str(canary.parent), str(canary.parent / "source")
    url, path = f"file://{source}", call("pathlib.Path", str(canary))
    weights = {"url": url, "model_dir": folder, "file_name": name}
    aliased = call("simclr_lightning.data.datamodule.Path", str(canary))
    return {
        "os.system": call("os.system", command=shell),
        "posix.system": call("posix.system", command=shell),
        "os.popen": call("os.popen", cmd=shell),
        "os.mkdir": call("os.mkdir", path=str(canary)),
        "os.rename": call("os.rename", src=source, dst=str(canary)),
        "eval": call("builtins.eval", code),
        "exec": call("builtins.exec", code),
        "open": call("builtins.open", file=str(canary), mode="w"),
        "io.open": call("io.open", file=str(canary), mode="w"),
        "Popen": call("subprocess.Popen", args=touch),
        "run": call("subprocess.run", args=touch),
        "check_output": call("subprocess.check_output", touch),
        "write_text": call("pathlib.Path.write_text", path, "x"),
        "urlretrieve": call("urllib.request.urlretrieve", url=url, filename=str(canary)),
        "copy": call("shutil.copy", src=source, dst=str(canary)),
        "torch.save": call("torch.save", obj=1, f=str(canary)),
        "download_url": call("torchvision.datasets.utils.download_url", url=url, root=folder, filename=name),
        "load_from_url": call("torch.hub.load_state_dict_from_url", **weights),
        "alias of os": call("simclr_lightning.checkpoint.os.system", command=shell),
        "alias of Path": call("simclr_lightning.data.datamodule.Path.touch", aliased),
        "own writer": call("simclr_lightning.run_folder.write_summary", call("pathlib.Path", folder), {}),
        "partial": call("functools.partial", call("os.system", command=shell)),
        "hydra's helper": call("hydra.utils.call", call("torch.save", obj=1, f=str(canary))),
        "hydra's method": call("hydra.utils.get_method", path="evil_on_import.thing"),
        "import": call("evil_on_import.thing"),
        "import_module": call("importlib.import_module", name="evil_on_import"),
        # nothing happens when these are made, and still they are refused
        "globals": call("simclr_lightning.projector.nn.Module.__init__.__globals__", x=1),
        "partial flag": call("os.system", _partial_=True, command=shell),
        "submodule": call("simclr_lightning.nothing.evil_on_import"),
        "not a name": call("torch.optim.SGD()"),
        "number": call(3),
        "null": call(None),
        "class method": call("torch.optim.SGD.load_state_dict", state_dict={}),
        "base class": call("torch.optim.Optimizer", params=[], defaults={}),
        "torch.load": call("torch.load", f=source),
    }


def let_loose(node: Any) -> Any:
    """Make what a node says, as a program without any check would."""
    if not isinstance(node, dict) or "_target_" not in node:
        return node
    made = {key: let_loose(value) for key, value in node.items() if not key.startswith("_")}
    target = pydoc.locate(node["_target_"])
    assert callable(target)
    return target(*map(let_loose, node.get("_args_", [])), **made)


IDLE = {
    *("globals", "partial flag", "submodule", "not a name", "number", "null", "class method", "base class"),
    "torch.load",
}
PLACES = (
    "optimizer",
    "model.encoder",
    "data.dataset.transform",
    "trainer.profiler",
    "hydra.callbacks.mine",
    "hydra.launcher",
    "hydra.sweeper.sampler",
    "hydra.job.config.override_dirname.mine",
    "anything",
)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    canary = tmp_path / "canary"
    (tmp_path / "source").write_text("x")
    (tmp_path / "evil_on_import.py").write_text(f"open({str(canary)!r}, 'w').close()\ndef thing(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    yield canary
    sys.modules.pop("evil_on_import", None)


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_hostile_targets_are_refused_everywhere_and_nothing_runs(name: str, canary: Path, composed: DictConfig) -> None:
    node = hostile(canary)[name]
    before = sorted(canary.parent.iterdir())
    wraps: list[Any] = [[node], [{"a": [1, node]}], {"deep": {"deeper": node}}]
    for number, place in enumerate(PLACES):
        for wrapped in (node, wraps[number % 3]):
            cfg = put(copy.deepcopy(composed), place, wrapped)
            with pytest.raises(UserError) as caught:
                check_targets(cfg)
            assert place.partition(".")[0] in str(caught.value)
            assert len(str(caught.value).splitlines()) <= LINES
    assert sorted(canary.parent.iterdir()) == before
    assert "evil_on_import" not in sys.modules


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(hostile(Path("x")).keys() - IDLE))
def test_these_targets_are_really_hostile(name: str, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The proof that the test above can fail: whoever makes what they say has been had.
    made: Any = None
    with contextlib.suppress(Exception):
        made = let_loose(hostile(canary)[name])
    for end in ("wait", "close"):
        getattr(made, end, int)()
    assert canary.exists() or (canary.parent / "summary.json").exists()


def test_what_hydra_makes_itself_holds_no_escaped_interpolation(canary: Path, composed: DictConfig) -> None:
    text = f"\\${{oc.create:'{{_target_: os.mkdir, path: {canary}}}'}}"
    for place, value in (("launcher.jobs", text), ("sweeper.mine", [{"deep": text}]), ("callbacks.mine", {"a": text})):
        with pytest.raises(UserError, match=rf"hydra\.{place.partition('.')[0]}.*Hydra would follow"):
            check_targets(put(copy.deepcopy(composed), f"hydra.{place}", value))
    assert not canary.exists()
    instantiate(OmegaConf.create({"_target_": "builtins.dict", "x": text}))
    assert canary.exists()  # the proof that it would


def test_an_interpolation_does_not_hide_a_target(canary: Path, cfg: DictConfig) -> None:
    text = f"${{oc.create:'{{_target_: os.system, command: touch {canary}}}'}}"
    OmegaConf.register_new_resolver("made", lambda: OmegaConf.create({"_target_": "os.system"}), replace=True)
    try:
        for place in ("trainer.profiler", "hydra.callbacks.mine"):
            for value in (text, "${made:}", {"_target_": "${oc.decode:os.system}"}):
                with pytest.raises(UserError):
                    check_targets(put(copy.deepcopy(cfg), place, value))
    finally:
        OmegaConf.clear_resolver("made")
    assert not canary.exists()


def test_an_interpolation_that_is_a_name_is_never_followed(canary: Path) -> None:
    text = f"${{oc.create:'{{_target_: pathlib.Path.touch, self: {{_target_: pathlib.Path, _args_: [{canary}]}}}}'}}"
    node = {"_target_": "simclr_lightning.Projector", "_partial_": True, "out_dim": text, "deep": {"er": [text]}}
    cfg = from_plain({"model": node})
    check_targets(cfg)
    assert make(cfg.model).keywords == {"out_dim": text, "deep": {"er": [text]}}
    assert not canary.exists()


def test_hydras_nodes_that_cannot_be_read_are_refused(cfg: DictConfig) -> None:
    with pytest.raises(UserError):
        check_targets(put(cfg, "hydra.callbacks.mine", "${nothing_of_this_name}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("handlers.mine", {"()": "subprocess.Popen", "args": ["true"]}),
        ("handlers.mine", {"class": "evil_on_import.Handler"}),
        ("formatters.mine", {"()": "os.system", "command": "true"}),
        ("filters.mine", {"()": "ext://os.system", "command": "true"}),
        ("handlers.mine", {"class": "logging.StreamHandler", "stream": "ext://evil_on_import.x"}),
        ("handlers", {"a": {"class": "logging.StreamHandler", "deep": ["ext://os.system"]}}),
    ],
)
@pytest.mark.parametrize("node", ["hydra.job_logging", "hydra.hydra_logging"])
def test_logging_makes_nothing_else(node: str, key: str, value: Any, canary: Path, cfg: DictConfig) -> None:
    with pytest.raises(UserError, match=node):
        check_targets(put(cfg, f"{node}.{key}", value))
    assert not canary.exists()


def test_hydras_own_options_pass() -> None:
    check_targets(compose(["hydra/job_logging=default", "hydra/hydra_logging=default"]))
    check_targets(compose(["hydra/launcher=basic"]))
    callback = {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}
    check_targets(put(compose([]), "hydra.callbacks.log", callback))


def test_a_target_of_one_tree_is_not_allowed_in_the_other(cfg: DictConfig) -> None:
    with pytest.raises(UserError):
        check_targets(put(copy.deepcopy(cfg), "hydra.callbacks.x", {"_target_": "lightning.Trainer"}))
    with pytest.raises(UserError):
        check_targets(put(cfg, "optimizer", {"_target_": HYDRA_ALLOWED[0]}))


def test_the_list_names_what_is_there() -> None:
    assert [name for name in ALLOWED if resolve(name) is None] == []
    assert len({id(resolve(name)) for name in ALLOWED}) == len(ALLOWED)


def test_another_name_of_an_allowed_object_is_fine(cfg: DictConfig) -> None:
    put(cfg, "model.projector._target_", "simclr_lightning.Projector")
    put(cfg, "optimizer._target_", "torch.optim.Adam")
    put(cfg, "trainer._target_", "lightning.pytorch.Trainer")
    check_targets(cfg)


def test_a_near_name_is_offered(cfg: DictConfig) -> None:
    with pytest.raises(UserError, match=r"did you mean torch\.optim\.AdamW"):
        check_targets(put(cfg, "optimizer._target_", "torch.optim.AdamWW"))


def test_arguments_without_names_are_refused(cfg: DictConfig) -> None:
    with pytest.raises(UserError, match=r"optimizer\._args_"):
        check_targets(put(copy.deepcopy(cfg), "optimizer._args_", [1]))
    with pytest.raises(UserError, match=r"optimizer\._args_"):
        check_targets(put(cfg, "optimizer._args_", "torch.optim.SGD"))


# -- the user's own package ---------------------------------------------------------------------------------


@pytest.fixture
def mypkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "mypkg_of_the_checks"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "nets.py").write_text(
        "import functools, os\nfrom pathlib import Path\n"
        "class Net:\n    def __init__(self, depth: int = 1): self.depth = depth\n"
        "class Mine(Path): pass\n"
        "def make(depth: int = 1): return Net(depth)\n"
        "shell = functools.partial(os.system, 'true')\nalso = os.system\nNUMBER = 3\n"
    )
    (tmp_path / name / "broken.py").write_text("raise RuntimeError('by its author')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


@pytest.mark.parametrize("target", ["nets.Net", "nets.make", "nets.Mine"])
def test_what_a_trusted_package_defines_is_allowed(target: str, mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.{target}"})
    with pytest.raises(UserError, match="trusted="):
        check_targets(cfg)
    assert f"{mypkg}.nets" not in sys.modules
    check_targets(cfg, [mypkg])
    check_targets(cfg, [f"{mypkg}.nets"])


@pytest.mark.parametrize(
    "target",
    ["nets.os.system", "nets.also", "nets.shell", "nets.Path", "nets.Mine.write_text", "nets.NUMBER", "nets", "none"],
)
def test_what_it_only_imports_is_not(target: str, mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.{target}"})
    with pytest.raises(UserError, match="may not make this"):
        check_targets(cfg, [mypkg])


def test_trust_comes_from_the_caller_and_not_from_the_configuration(mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.nets.Net"})
    with pytest.raises(UserError, match="may not make this"):
        check_targets(put(cfg, "trusted", [mypkg]))


def test_a_package_of_a_similar_name_is_not_trusted(mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.nets.Net"})
    importlib.import_module(f"{mypkg}.nets")
    with pytest.raises(UserError, match="may not make this"):
        check_targets(cfg, [f"{mypkg}.net"])


def test_a_trusted_module_that_breaks_is_a_message(mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.broken.Net"})
    with pytest.raises(UserError, match=r"broken cannot be imported: RuntimeError: by its author"):
        check_targets(cfg, [mypkg])


@pytest.mark.parametrize(
    "name", ["os", "builtins", "torch", "torch.hub", "simclr_lightning", "hydra", "no_such_package", "a-b", ""]
)
def test_only_a_package_of_ones_own_can_be_trusted(name: str, cfg: DictConfig) -> None:
    with pytest.raises(UserError, match="trusted="):
        check_targets(cfg, [name])


def test_a_key_that_the_users_class_takes_may_be_added(mypkg: str) -> None:
    words = [f"model.encoder._target_={mypkg}.nets.Net", f"trusted=[{mypkg}]"]
    assert compose([*words, "+model.encoder.depth.x=1"]).model.encoder.depth.x == 1
    with pytest.raises(UserError, match=r"model\.encoder\.height: unknown key"):
        compose([*words, "+model.encoder.height=1"])
