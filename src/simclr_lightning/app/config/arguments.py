"""List the arguments of targets that the program sets itself, and limits of those of Lightning's Trainer.

`keys` has the keys of conf/. All other arguments of the Trainer are checked by the types in its signature.
"""

from __future__ import annotations

from typing import Final

from simclr_lightning.app.config.rules import NOT_NEGATIVE, Rule, number, one_of, whole
from simclr_lightning.app.config.stock import PROFILER_NAMES, STRATEGY_NAMES

_LIMIT: Final = Rule(
    lambda v: v is None or (whole(1).accepts(v) if isinstance(v, int) else number("", lambda x: 0 < x <= 1).accepts(v)),
    "a number of batches of at least 1, or a share above 0 and at most 1.0",
)
# Arguments of Lightning's Trainer with narrower limits than their types; conf/ does not list them.
TRAINER_RULES: Final[dict[str, Rule]] = {
    "fast_dev_run": Rule(lambda v: isinstance(v, bool) or whole(1).accepts(v), "true, false or a number of batches"),
    "limit_train_batches": _LIMIT,
    "overfit_batches": Rule(lambda v: v == 0 or _LIMIT.accepts(v), f"{_LIMIT.says}, or 0"),
    "log_every_n_steps": whole(1).or_(None),
    "min_epochs": whole(1).or_(None),
    "min_steps": whole(1).or_(None),
    "gradient_clip_val": NOT_NEGATIVE.or_(None),
    "gradient_clip_algorithm": one_of("norm", "value", None),
    "strategy": Rule(
        lambda v: isinstance(v, dict) or v in STRATEGY_NAMES, f"one of {', '.join(STRATEGY_NAMES)}, or have a _target_"
    ),
    "profiler": Rule(
        lambda v: v is None or isinstance(v, dict) or v in PROFILER_NAMES,
        f"null or one of {', '.join(PROFILER_NAMES)}, or have a _target_",
    ),
}

_OF_VALIDATION: Final = (
    *("check_val_every_n_epoch", "limit_val_batches", "limit_test_batches", "limit_predict_batches"),
    *("num_sanity_val_steps", "val_check_interval"),
)
# Arguments of a target that the program sets itself, with the key to use instead.
SET_BY_PROGRAM: Final[dict[str, str]] = {
    "trainer.accumulate_grad_batches": "micro_batch_size",
    "trainer.barebones": "",
    "trainer.callbacks": "callbacks.*",
    "trainer.default_root_dir": "hydra.run.dir",
    "trainer.enable_checkpointing": "callbacks.checkpoints.*",
    "trainer.logger": "logger",
    "trainer.model_registry": "",
    "trainer.plugins": "",
    "trainer.reload_dataloaders_every_n_epochs": "",
    "trainer.use_distributed_sampler": "",
    **{f"trainer.{name}": "callbacks.online.every_n_epochs" for name in _OF_VALIDATION},
    "data.lazy": "micro_batch_size",
    "data.recipe": "views",
    "data.seed": "seed",
    "optimizer.params": "",
    "optimizer.maximize": "",
    "model.projector.in_dim": "",
}
WHY_SET_BY_PROGRAM: Final[dict[str, str]] = {
    "trainer.accumulate_grad_batches": "accumulated gradients add no negatives, since each loss sees only its own "
    "small batch. Gradient caching computes the exact gradient of the large batch in the same memory",
    "trainer.barebones": "it would leave out the checkpoints, the metrics and the scores",
    "trainer.callbacks": "each callback has a name: callbacks.NAME._target_=lightning.pytorch.callbacks.Timer",
    "trainer.enable_checkpointing": "a run always saves checkpoints, so that it can be resumed",
    "trainer.logger": "loggers are chosen by name",
    "trainer.model_registry": "it would upload the checkpoints to a server",
    "trainer.plugins": "the program's own plugins save checkpoints whole or not at all, and share BatchNorm",
    "trainer.reload_dataloaders_every_n_epochs": "the images of a run do not change, so that it can be resumed exactly",
    "trainer.use_distributed_sampler": "the data module gives each device its part of the global batch",
    **dict.fromkeys(
        (f"trainer.{name}" for name in _OF_VALIDATION),
        "there is no validation loop; the encoder is scored between epochs on the held-out part of train",
    ),
}
