"""The type and range of every key of conf/: the table that the checks and the near names read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

ANY_SEED: Final = 2**32 - 1
MOST: Final = 1000  # of a rate, decay or temperature: the largest rate in use is 30; with 100,000 h leaves float32
LARGEST_SIDE: Final = 8192  # pixels: a view of this side takes 0.8 GB
WIDEST: Final = 2**20  # features: a layer from h to this width has billions of weights
# Weights and views are float32, so the precisions of whole networks ("64-true") do not fit.
_PRECISIONS: Final = ("32-true", "32", "bf16-mixed", "bf16", "16-mixed", "16")

# What OnlineScore takes as `select`: written out here, where nothing heavy may be imported.
SELECTABLE: Final = (
    *("auto", "knn_top1", "linear_top1", "held_out_loss", "contrastive_accuracy", "alignment", "uniformity"),
    *("rankme", "effective_rank", "neighbour_agreement"),
)


@dataclass(frozen=True)
class Rule:
    """What a key may hold.

    Attributes:
        accepts: whether a resolved, plain value is right.
        says: the range in words, to follow "must be".
        required: whether the program itself reads the key, so that it must be there.
    """

    accepts: Callable[[Any], bool]
    says: str
    required: bool = True

    def or_(self, *others: Any) -> Rule:
        """The same, with these values accepted too."""
        names = " or ".join("null" if other is None else str(other).lower() for other in others)
        return Rule(lambda v: _is_one_of(v, others) or self.accepts(v), f"{self.says}, or {names}", self.required)


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from low to high; true and false are none."""
    says = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(lambda v: _is_whole(v) and low <= v <= (v if high is None else high), says)


def number(says: str, accepts: Callable[[float], bool]) -> Rule:
    """A finite number in a range."""
    return Rule(lambda v: _is_number(v) and accepts(v), f"a number {says}")


def one_of(*options: Any) -> Rule:
    """One of these values."""
    return Rule(lambda v: _is_one_of(v, options), f"one of {', '.join(map(str, options))}")


def list_of(says: str, rule: Rule, *, least: int = 1) -> Rule:
    """A list of values that each fit a rule, all of them different."""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) >= least
            and all(map(rule.accepts, value))
            and len({str(part) for part in value}) == len(value)
        )

    return Rule(accepts, f"a list {says}, none twice")


def optional(rules: dict[str, Rule]) -> dict[str, Rule]:
    """The same rules for keys that may be absent: a target has a default, or another option lacks them."""
    return {key: Rule(rule.accepts, rule.says, required=False) for key, rule in rules.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one_of(value: Any, options: Sequence[Any]) -> bool:
    return any(type(value) is type(option) and value == option for option in options)


def _is_channels(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


SWITCH: Final = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT: Final = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a text that is not empty")
PATH: Final = Rule(lambda v: isinstance(v, str) and bool(v), "a path").or_(None)
FOLDER: Final = Rule(lambda v: isinstance(v, str) and bool(v), "a folder's name in data.path").or_(None)
POSITIVE: Final = number(f"above 0 and at most {MOST:,}", lambda v: 0 < v <= MOST)
NOT_NEGATIVE: Final = number(f"from 0 to {MOST:,}", lambda v: 0 <= v <= MOST)
CHANNELS: Final = Rule(_is_channels, "three numbers, one a channel").or_(None)
SPREAD: Final = Rule(lambda v: _is_channels(v) and min(v) > 0, "three numbers above 0, one a channel").or_(None)
LINES: Final = Rule(lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), "a list of shell lines")
NAMES: Final = Rule(lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v), "a list of packages")
TARGET: Final = Rule(lambda v: isinstance(v, str) and bool(v), "the dotted name of a class or function")
OPTIONS: Final = Rule(lambda v: isinstance(v, dict), "options of sbatch, such as {mail-type: END}").or_(None)
GRID: Final = Rule(
    lambda v: isinstance(v, dict) and all(isinstance(part, str | int | float) for part in v.values()),
    "texts by key, such as {seed: '0,1'}",
).or_(None)
STORAGE: Final = Rule(lambda v: isinstance(v, str) and "://" in v, "an address such as sqlite:///study.db").or_(None)
SAMPLER: Final = Rule(lambda v: isinstance(v, dict), "chosen: hydra/sweeper/sampler=tpe")
NO_SPACE: Final = Rule(lambda v: v is None, "null: the space is words, such as 'loss.temperature=interval(0.05,1)'")
# Hydra's own launcher would run the jobs in this process.
LAUNCHER: Final = Rule(lambda v: not str(v).endswith(".BasicLauncher"), "that of hydra/launcher=simclr or slurm")
# ViewRecipe checks its own fields, and the parts of a target of the user's own are theirs.
CHECKED_BY_ITSELF: Final = Rule(lambda v: True, "checked elsewhere", required=False)

RULES: Final[dict[str, Rule]] = {
    "seed": whole(0, ANY_SEED),
    "micro_batch_size": whole(1).or_(None),
    "select": one_of(*SELECTABLE),
    "compile": one_of("auto", True, False),
    "static_graph": one_of("auto", True, False),
    "tf32": one_of("auto", True, False),
    "ema": number("above 0 and below 1", lambda v: 0 < v < 1).or_(None),
    "ckpt_path": PATH,
    "force": SWITCH,
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
            "data.dataset.on_corrupt": one_of("fail", "skip"),
            "data.dataset.max_skipped": whole(0),
            "data.dataset.max_pixels": whole(1, 178_956_970),
            **{f"data.dataset.{part}": FOLDER for part in ("train", "val", "test")},
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
    "loss.temperature": POSITIVE,
    "optimizer._target_": TARGET,
    "optimizer._partial_": one_of(True),
    "optimizer.lr": POSITIVE,
    **optional(
        {
            "optimizer.momentum": number("from 0 to below 1", lambda v: 0 <= v < 1),
            "optimizer.weight_decay": NOT_NEGATIVE,
            "optimizer.trust_coefficient": POSITIVE,
            "optimizer.nesterov": SWITCH,
            "optimizer.fused": Rule(lambda v: v is True, "true: only a fused step leaves out an update with NaN"),
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
    "trainer.devices": whole(1).or_(-1, "auto"),
    "trainer.num_nodes": whole(1),
    "trainer.precision": one_of("auto", *_PRECISIONS, 16, 32),
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
    "logger.name": one_of("csv", "wandb", "tensorboard"),
    **optional(
        {
            "logger.project": TEXT,
            "logger.entity": TEXT.or_(None),
            "logger.group": TEXT.or_(None),
            "logger.job_type": TEXT,
            "logger.tags": Rule(lambda v: isinstance(v, list) and all(map(TEXT.accepts, v)), "a list of texts"),
            "logger.mode": one_of("auto", "online", "offline", "disabled"),
        }
    ),
}

# Of Hydra's own node: the launchers' and the sweeper's keys, each there with its option.
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


def known_keys() -> frozenset[str]:
    """Every key that conf/ has, whatever options are chosen."""
    return frozenset(RULES)
