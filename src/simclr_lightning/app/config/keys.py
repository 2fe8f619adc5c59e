"""List every key with its rule: those of train.yaml, evaluate.yaml, Hydra's node and ``simclr pack``.

`validate` checks values with this table, and `unknown_keys` finds the nearest key in it.
"""

from __future__ import annotations

from typing import Final

from simclr_lightning.app.config.rules import (
    ANY_SEED,
    CHANNELS,
    CHECKED_BY_ITSELF,
    FOLDER,
    GRID,
    LARGEST_SIDE,
    LAUNCHER,
    LINES,
    NAMES,
    NO_SPACE,
    NOT_NEGATIVE,
    OPTIONS,
    PATH,
    POSITIVE,
    PREFIX,
    SAMPLER,
    SERVER,
    SPREAD,
    STORAGE,
    SWITCH,
    TARGET,
    TEMPERATURE,
    TEXT,
    WIDEST,
    Rule,
    list_of,
    number,
    one_of,
    optional,
    whole,
)
from simclr_lightning.data import SOURCES
from simclr_lightning.evaluation.protocols import PROTOCOLS
from simclr_lightning.selection import SELECTABLE
from simclr_lightning.text import share_name

_PRECISIONS: Final = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")
LOGGERS: Final = ("wandb", "tensorboard", "mlflow", "comet")
RULES: Final[dict[str, Rule]] = {
    "seed": whole(0, ANY_SEED),
    "micro_batch_size": whole(1).or_(None),
    "select": one_of("auto", *SELECTABLE),
    "compile": one_of("auto", True, False),
    "static_graph": one_of("auto", True, False),
    "tf32": one_of("auto", True, False),
    "keep_pages": one_of("auto", True, False),
    "pictures": one_of("auto", True, False),
    "ema": number("above 0 and below 1", lambda v: 0 < v < 1).or_(None),
    "ckpt_path": PATH,
    "force": one_of(False, True, "images", "all"),
    "dry_run": SWITCH,
    "preflight": one_of("auto", True, False),
    "debug": SWITCH,
    "trusted": NAMES,
    "model.encoder._target_": TARGET,
    "model.projector._target_": TARGET,
    "model.projector._partial_": one_of(True),
    "model.weights": PATH,
    "model.channels_last": one_of("auto", True, False),
    **optional(
        {
            "model.encoder.depth": one_of(10, 18, 34, 50, 101, 152),
            "model.encoder.width": POSITIVE,
            "model.encoder.stem": one_of("imagenet", "cifar"),
            "model.encoder.zero_init_last": SWITCH,
            "model.encoder.mean": CHANNELS,
            "model.encoder.std": SPREAD,
            "model.encoder.name": TEXT,
            "model.encoder.pretrained": SWITCH,
            "model.encoder.size": whole(1, LARGEST_SIDE).or_(None),
            "model.projector.hidden_dim": whole(1, WIDEST).or_(None),
            "model.projector.out_dim": whole(1, WIDEST),
            "model.projector.layers": whole(0, 3),
        }
    ),
    "data._target_": TARGET,
    "data.dataset._target_": TARGET,
    "data.dataset._partial_": one_of(True),
    "data.path": PATH,
    "data.batch_size": whole(2),
    **optional(
        {
            "data.num_workers": whole(0, 1024),
            "data.resident": one_of("auto", True, False),
            "data.dataset.labels": SWITCH,
            **{f"data.dataset.{part}": FOLDER for part in ("train", "val", "test")},
            "data.dataset.on_corrupt": one_of("fail", "skip"),
            "data.dataset.max_skipped": whole(0),
            "data.dataset.max_pixels": whole(1, 178_956_970),
            "data.dataset.full_scale": number("above 0", lambda v: v > 0).or_(None),
            **{f"data.dataset.{column}": TEXT.or_(None) for column in ("image", "label")},
        }
    ),
    "views._target_": TARGET,
    "views.size": whole(1, LARGEST_SIDE),
    **{
        f"views.{name}": CHECKED_BY_ITSELF
        for name in (
            *("crop", "area", "aspect", "interpolation", "flip", "jitter", "strength", "brightness", "grey"),
            *("blur", "blur_sigma", "blur_kernel", "solarise"),
        )
    },
    "loss._target_": TARGET,
    **optional(
        {
            "loss.temperature": TEMPERATURE,
            "loss.sigma": POSITIVE.or_(None),
            "loss.tau_plus": number("from 0 to below 1", lambda v: 0 <= v < 1),
            "loss.beta": NOT_NEGATIVE,
        }
    ),
    "optimizer._target_": TARGET,
    "optimizer._partial_": one_of(True),
    "optimizer.lr": POSITIVE,
    **optional(
        {
            "optimizer.momentum": number("from 0 to below 1", lambda v: 0 <= v < 1),
            "optimizer.weight_decay": NOT_NEGATIVE,
            "optimizer.trust_coefficient": POSITIVE,
            "optimizer.nesterov": SWITCH,
            "optimizer.fused": SWITCH,
            "optimizer.opt": TEXT,
        }
    ),
    "schedule._target_": TARGET,
    **optional(
        {
            "schedule.rule": one_of("linear", "sqrt", "constant"),
            "schedule.warmup_epochs": number("from 0 to 1,000,000", lambda v: 0 <= v <= 1_000_000),
        }
    ),
    "trainer._target_": TARGET,
    "trainer.max_epochs": whole(1),
    "trainer.max_steps": whole(1).or_(-1),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": Rule(
        lambda v: whole(1).or_(-1, "auto").accepts(v) or list_of("", whole(0)).accepts(v),
        "a number of devices of at least 1, -1 or auto for all, or a list of GPUs such as [0,2]",
    ),
    "trainer.num_nodes": whole(1),
    "trainer.precision": Rule(
        one_of("auto", *_PRECISIONS, 16, 32).accepts,
        "auto, 32-true, bf16-mixed or 16-mixed: the weights stay float32, or small updates would be lost",
    ),
    "trainer.sync_batchnorm": whole(1).or_("auto", True, False),
    "trainer.deterministic": SWITCH.or_("warn", None),
    "callbacks.online.every_n_epochs": whole(0),
    "callbacks.online.k": whole(1),
    "callbacks.online.bank_at_most": whole(1),
    "callbacks.online.views_at_most": whole(3),
    "callbacks.online.probe": SWITCH,
    "callbacks.checkpoints.every_n_epochs": whole(1),
    "callbacks.checkpoints.every_n_steps": whole(1).or_(None),
    "callbacks.metrics.every_n_steps": whole(1),
    "callbacks.hardness.every_n_steps": whole(0),
    "logger.name": one_of("csv", *LOGGERS),
    **optional(
        {
            "logger.project": TEXT,
            "logger.entity": TEXT.or_(None),
            "logger.group": TEXT.or_(None),
            "logger.job_type": TEXT,
            "logger.tags": Rule(lambda v: isinstance(v, list) and all(map(TEXT.accepts, v)), "a list of texts"),
            "logger.mode": one_of("auto", "online", "offline", "disabled"),
            "logger.tensorboard.flush_secs": whole(1),
            **{f"logger.{name}.prefix": PREFIX for name in ("tensorboard", "mlflow", "comet")},
            "logger.mlflow.experiment_name": TEXT,
            "logger.mlflow.run_name": TEXT.or_(None),
            "logger.mlflow.tracking_uri": SERVER,
            "logger.comet.project": TEXT,
            "logger.comet.workspace": TEXT.or_(None),
            "logger.comet.online": one_of("auto", True, False),
            "early_stopping._target_": TARGET,
            "early_stopping.monitor": TEXT,
            "early_stopping.mode": one_of("auto", "min", "max"),
            "early_stopping.patience": whole(1),
            "early_stopping.min_delta": NOT_NEGATIVE,
        }
    ),
}
CALLBACKS_OF_PROGRAM: Final = frozenset(key.split(".")[1] for key in RULES if key.startswith("callbacks."))
"""The nodes of ``callbacks`` that are options of the program's own callbacks; every other one is a further callback."""

# Keys below ``hydra``: of the launchers and the sweepers. A key exists only with its option.
HYDRA_RULES: Final[dict[str, Rule]] = optional(
    {
        "launcher._target_": LAUNCHER,
        "launcher.jobs": whole(1),
        "launcher.cluster": one_of("slurm", "local"),
        **{f"launcher.{name}": TEXT.or_(None) for name in ("partition", "account", "qos", "constraint")},
        "launcher.minutes": whole(1),
        "launcher.requeue": whole(0),
        "launcher.seconds_to_save": whole(1),
        "launcher.cpus": whole(1).or_(None),
        "launcher.memory_gb": whole(1).or_(None),
        "launcher.setup": LINES,
        "launcher.options": OPTIONS,
        "sweeper.max_batch_size": whole(1).or_(None),
        "sweeper.params": GRID,
        "sweeper.n_trials": whole(1),
        "sweeper.n_jobs": whole(1),
        "sweeper.storage": STORAGE,
        "sweeper.study_name": TEXT.or_(None),
        "sweeper.sampler": SAMPLER,
        "sweeper.sampler.seed": whole(0, ANY_SEED).or_(None),
        "sweeper.direction": one_of("maximize"),
        "sweeper.max_failure_rate": number("from 0 to 1", lambda v: 0 <= v <= 1),
        **{f"sweeper.{name}": NO_SPACE for name in ("search_space", "custom_search_space")},
    }
)

# The keys of simclr evaluate.
_RATE_LIST: Final = list_of("of such numbers", POSITIVE)
_RATES: Final = Rule(lambda v: POSITIVE.accepts(v) or _RATE_LIST.accepts(v), f"{POSITIVE.says}, or {_RATE_LIST.says}")
_SHARES: Final = list_of("of shares above 0 and below 1", number("", lambda v: 0 < v < 1))
_SGD: Final = {"batch_size": whole(2), "epochs": whole(1), "lr": _RATES}
_PROTOCOL: Final = Rule(
    lambda v: v in PROTOCOLS if isinstance(v, str) and "." not in v else isinstance(v, str),
    f"one of {', '.join(PROTOCOLS)}, or the dotted name of a function",
)
EVALUATION_RULES: Final[dict[str, Rule]] = {
    **{key: rule for key, rule in RULES.items() if key.startswith(("data.", "views.")) or key in ("seed", "debug")},
    **optional({key: rule for key, rule in RULES.items() if key.startswith("model.")}),
    "trusted": NAMES,
    "protocol": Rule(
        lambda v: v is None or _PROTOCOL.accepts(v) or list_of("", _PROTOCOL).accepts(v),
        f"{_PROTOCOL.says}, a list of these, or null",
    ),
    "transfer": list_of("of data sets", one_of(*SOURCES), least=0),
    **optional({f"paths.{name}": PATH for name in SOURCES}),
    "untrained": SWITCH,
    "select_on": Rule(lambda v: v == "held_out", "held_out: no choice is made on test, which is scored once"),
    "seeds": list_of("of seeds", whole(0, ANY_SEED)),
    "knn.k": whole(1),
    "knn.ks": list_of("of whole numbers of at least 1", whole(1)),
    "knn.temperature": POSITIVE,
    "knn.weighting": one_of("both", "plain", "weighted"),
    **{f"linear.{key}": rule for key, rule in _SGD.items()},
    **{f"finetune.{key}": rule for key, rule in _SGD.items()},
    "semi.fractions": Rule(
        lambda v: _SHARES.accepts(v) and len(set(map(share_name, v))) == len(v),
        f"{_SHARES.says} to six digits, since each names a score",
    ),
    "semi.epochs": Rule(
        lambda v: isinstance(v, list) and all(map(whole(1).accepts, v)), "whole numbers, one per fraction"
    ),
    "semi.lr": Rule(POSITIVE.accepts, f"{POSITIVE.says}, and only one: few labels leave none to choose a rate on"),
    "semi.batch_size": whole(2),
    "semi.start": whole(1, 3).or_("h"),
    "accelerator": one_of("auto", "cpu", "cuda", "mps"),
    "precision": one_of("32-true", "bf16-mixed", "16-mixed"),
    "cache": SWITCH,
}

PACK_RULES: Final[dict[str, Rule]] = {
    "short_side": whole(1, 65_500),
    "quality": whole(1, 95),
    "on_corrupt": RULES["data.dataset.on_corrupt"],
    "max_skipped": RULES["data.dataset.max_skipped"],
    "max_pixels": RULES["data.dataset.max_pixels"],
    "full_scale": RULES["data.dataset.full_scale"],
}
