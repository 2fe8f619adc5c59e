"""List Lightning's own callbacks, profilers and strategies that a configuration may make, and torch's optimizers.

The lists name classes and arguments one by one. An argument that takes a function or an object is on no list, since a
configuration passes plain values only. An argument that names a file or a folder is limited to the run's folder.
`targets` looks classes up here, `validate` checks the arguments, and `app.training.stock` makes the objects.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

_CALLBACKS: Final = "lightning.pytorch.callbacks."
_PROFILERS: Final = "lightning.pytorch.profilers."
_STRATEGIES: Final = "lightning.pytorch.strategies."
EARLY_STOPPING: Final = f"{_CALLBACKS}EarlyStopping"

CALLBACKS: Final[dict[str, tuple[str, ...]]] = {
    EARLY_STOPPING: (
        *("monitor", "min_delta", "patience", "verbose", "mode", "strict", "check_finite", "stopping_threshold"),
        *("divergence_threshold", "check_on_train_epoch_end", "log_rank_zero_only"),
    ),
    f"{_CALLBACKS}DeviceStatsMonitor": ("cpu_stats",),
    f"{_CALLBACKS}LearningRateMonitor": ("logging_interval", "log_momentum", "log_weight_decay"),
    f"{_CALLBACKS}ModelCheckpoint": (
        *("dirpath", "filename", "monitor", "verbose", "save_last", "save_top_k", "save_on_exception", "mode"),
        *("save_weights_only", "auto_insert_metric_name", "every_n_train_steps", "every_n_epochs"),
        *("save_on_train_epoch_end", "enable_version_counter"),
    ),
    f"{_CALLBACKS}ModelSummary": ("max_depth",),
    f"{_CALLBACKS}OnExceptionCheckpoint": ("dirpath", "filename"),
    f"{_CALLBACKS}RichModelSummary": ("max_depth",),
    f"{_CALLBACKS}RichProgressBar": ("refresh_rate", "leave"),
    f"{_CALLBACKS}TQDMProgressBar": ("refresh_rate", "process_position", "leave"),
    f"{_CALLBACKS}Timer": ("duration", "interval", "verbose"),
}
PROFILERS: Final[dict[str, tuple[str, ...]]] = {
    f"{_PROFILERS}SimpleProfiler": ("dirpath", "filename", "extended"),
    f"{_PROFILERS}AdvancedProfiler": ("dirpath", "filename", "line_count_restriction", "dump_stats"),
    f"{_PROFILERS}PyTorchProfiler": (
        *("dirpath", "filename", "group_by_input_shapes", "export_to_chrome", "row_limit", "sort_by_key"),
        *("record_module_names", "record_shapes", "profile_memory", "with_stack", "with_flops"),
    ),
}
PROFILER_NAMES: Final = {
    name: f"{_PROFILERS}{kind}Profiler"
    for name, kind in (("simple", "Simple"), ("advanced", "Advanced"), ("pytorch", "PyTorch"))
}
STRATEGIES: Final[dict[str, tuple[str, ...]]] = {
    f"{_STRATEGIES}DDPStrategy": (
        *("find_unused_parameters", "static_graph", "gradient_as_bucket_view", "bucket_cap_mb", "broadcast_buffers"),
    ),
    f"{_STRATEGIES}SingleDeviceStrategy": (),
}
STRATEGY_NAMES: Final = (
    *("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "single_device"),
)
# Arguments of the keywords that a class passes on, which its signature does not list.
_PASSED_ON: Final = {
    **dict.fromkeys(("find_unused_parameters", "static_graph", "gradient_as_bucket_view", "broadcast_buffers"), bool),
    **dict.fromkeys(("record_shapes", "profile_memory", "with_stack", "with_flops"), bool),
    "bucket_cap_mb": int,
}
OPTIMIZERS: Final = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
FOLDERS: Final = frozenset({"dirpath"})
FILES: Final = frozenset({"filename"})

_FUNCTIONS: Final = "it takes functions, and a configuration passes plain values; write a callback in your own package"
_BASE: Final = "it is a base class and does nothing; write a callback in your own package"
_SHARDED: Final = (
    "it divides the weights between the devices, and the scores between epochs, LARS and the checkpoints need whole "
    "weights; use trainer.strategy=ddp, and micro_batch_size if the memory is too small"
)
_PROCESSES: Final = "the program starts the processes itself; use trainer.strategy=ddp"
_HARDWARE: Final = "this project is for CPUs and GPUs; use trainer.strategy=ddp"
REFUSED: Final[dict[str, str]] = {
    "BackboneFinetuning": "it unfreezes module.backbone, and SimCLR trains the whole encoder from the first step",
    "BatchSizeFinder": "the batch size is the number of negatives and must not depend on the device; dry_run=true "
    "prints the largest batch, and micro_batch_size saves memory",
    "EMAWeightAveraging": "only the key ema averages the weights that are scored and exported; use ema=0.999",
    "GradientAccumulationScheduler": "accumulated gradients add no negatives; use micro_batch_size",
    "LambdaCallback": _FUNCTIONS,
    "LearningRateFinder": "the schedule sets the rate, and a search would change it after it was saved; sweep "
    "optimizer.lr with -m",
    "ModelPruning": "it renames the weights, so that no checkpoint fits the network; prune the exported encoder",
    "SpikeDetection": "Lightning cannot restore its state, so that no run could be resumed; the program ends a run "
    "whose loss is NaN itself",
    "StochasticWeightAveraging": "it replaces the schedule and adds an epoch, so that a resumed run would differ; use "
    "ema=0.999",
    "ThroughputMonitor": f"{_FUNCTIONS}. summary.json has images_per_second",
    "WeightAveraging": "only the key ema averages the weights that are scored and exported; use ema=0.999",
    **dict.fromkeys(("BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"), _BASE),
    "PassThroughProfiler": "it measures nothing; use trainer.profiler=null",
    "Profiler": _BASE,
    "XLAProfiler": "it is for TPUs; use trainer.profiler=simple, advanced or pytorch",
    **dict.fromkeys(("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"), _SHARDED),
    **dict.fromkeys(("SingleDeviceXLAStrategy", "XLAStrategy"), _HARDWARE),
    **dict.fromkeys(("ParallelStrategy", "Strategy"), _BASE),
}
_REFUSED_OPTIMIZERS: Final = {
    "ASGD": "the average that it computes would not be scored or exported; use optimizer=sgd ema=0.999",
    "LBFGS": "it computes the loss several times in one step; use optimizer=lars, sgd or adamw",
    "Muon": "it takes matrices only, and a convolution has four dimensions; use optimizer=timm optimizer.opt=muon",
    "Optimizer": "it is a base class; use optimizer=lars, sgd or adamw",
    "SparseAdam": "it takes sparse gradients only; use optimizer=adamw",
}
_REFUSED_NAMES: Final = (
    (re.compile(r"fsdp|deepspeed|model_parallel"), _SHARDED),
    (re.compile(r"spawn|fork|notebook"), _PROCESSES),
    (re.compile(r"xla|tpu|hpu"), _HARDWARE),
)


def place_of(key: str) -> Mapping[str, tuple[str, ...]]:
    """Return the classes of Lightning that may be made at a key, with the arguments of each; empty elsewhere.

    Args:
        key: the dotted key of a node, such as ``callbacks.NAME`` or ``trainer.profiler``.
    """
    if key == "early_stopping":
        return {EARLY_STOPPING: CALLBACKS[EARLY_STOPPING]}
    if re.fullmatch(r"callbacks\.[^.]+", key):
        return CALLBACKS
    return {"trainer.profiler": PROFILERS, "trainer.strategy": STRATEGIES}.get(key, {})


def why_refused(target: str) -> str | None:
    """Return why a class of Lightning or torch may not be made; None for every other name."""
    package, _, name = target.rpartition(".")
    if package == "torch.optim":
        return _REFUSED_OPTIMIZERS.get(name)
    if package.partition(".")[0] not in ("lightning", "pytorch_lightning", "lightning_fabric"):
        return None
    if package.startswith("pytorch_lightning"):
        return f"use the package lightning: {target.replace('pytorch_lightning', 'lightning.pytorch', 1)}"
    return REFUSED.get(name)


def why_no_strategy(name: str) -> str | None:
    """Return why a name of a strategy cannot be used; None if it is unknown."""
    return next((reason for pattern, reason in _REFUSED_NAMES if pattern.search(name)), None)


def annotation_of(made: Any, name: str) -> Any:
    """Return the type of an argument of a class: that of its signature, or that of a keyword which it passes on."""
    found = inspect.signature(made).parameters.get(name)
    return _PASSED_ON[name] if found is None else found.annotation


def is_inside(text: str) -> bool:
    """Return whether a path stays in the folder to which it is relative.

    >>> is_inside("more/best"), is_inside("../other"), is_inside("/tmp")
    (True, False, False)
    """
    path = PurePath(text)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not text.startswith("~")
