"""Make the parts of Lightning that a configuration names: callbacks, the profiler and the strategy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, Timer
from lightning.pytorch.callbacks.checkpoint import Checkpoint
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from simclr_lightning.app.config.instantiate import make
from simclr_lightning.app.config.plain import from_plain, to_plain
from simclr_lightning.app.config.stock import FOLDERS, PROFILER_NAMES
from simclr_lightning.app.config.stock_parts import direction, further_callbacks, metric_names, no_metric
from simclr_lightning.app.config.targets import resolve
from simclr_lightning.app.errors import UserError
from simclr_lightning.run_folder import CHECKPOINTS

_WITH_FOLDER: Final = ("ModelCheckpoint", "OnExceptionCheckpoint")  # written below checkpoints/NAME by default


def make_callbacks(cfg: DictConfig, folder: Path) -> list[L.Callback]:
    """Return the callbacks that the configuration adds to those of the program, with `Watch` as the first.

    Args:
        cfg: the resolved configuration.
        folder: the run's folder, to which their paths are relative.

    Raises:
        UserError: a class of the user makes something else than a callback.
    """
    plain = to_plain(cfg)
    nodes = further_callbacks(plain)
    made = [_callback(key, _with_paths(key, node, folder)) for key, node in nodes.items()]
    return [Watch(dict(zip(nodes, made, strict=True)), plain), *made] if made else []


def _callback(key: str, node: Mapping[str, Any]) -> L.Callback:
    found = dict(node)
    if found.get("mode", "auto") == "auto" and isinstance(found.get("monitor"), str):
        found["mode"] = direction(found["monitor"])
    callback = make(from_plain(found))
    if not isinstance(callback, L.Callback):
        raise UserError(
            f"{key}: {node['_target_']} made a {type(callback).__name__}; it must make a lightning.Callback"
        )
    logging.getLogger(type(callback).__module__).setLevel(logging.INFO)  # `quiet_libraries` silences Lightning's others
    return callback


def _with_paths(key: str, node: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the node of a part with its folder: inside the run's folder."""
    found = dict(node)
    if resolve(str(node["_target_"]), at=key) is None:
        return found  # a class of the user
    for name in FOLDERS & found.keys():
        found[name] = None if found[name] is None else str(folder / found[name])
    if str(node["_target_"]).endswith(_WITH_FOLDER) and found.get("dirpath") is None:
        found["dirpath"] = str(folder / CHECKPOINTS / key.rpartition(".")[2])
    return found


def make_profiler(cfg: DictConfig, folder: Path) -> Profiler | None:
    """Return the profiler of ``trainer.profiler``, which writes its report into the run's folder."""
    asked = to_plain(cfg.trainer).get("profiler")
    if asked is None:
        return None
    node = {"_target_": PROFILER_NAMES[asked]} if isinstance(asked, str) else dict(asked)
    node.setdefault("filename", "profile")
    node.setdefault("dirpath", ".")
    profiler: Profiler = make(from_plain(_with_paths("trainer.profiler", node, folder)))
    return profiler


def make_strategy(cfg: DictConfig, kind: str, world: int) -> Any:
    """Return the strategy for these devices: DDP for several, with the options of ``trainer.strategy``.

    Args:
        cfg: the resolved configuration.
        kind: the accelerator: cuda, mps or cpu.
        world: processes of the run.

    Raises:
        UserError: a strategy for one device, and there are several.
    """
    asked = to_plain(cfg.trainer).get("strategy") or "auto"
    node = asked if isinstance(asked, dict) else {}
    if world > 1 and "single" in str(node.get("_target_", asked)).lower():
        raise UserError(f"trainer.strategy is for one device, and the run has {world}; use trainer.strategy=ddp")
    if node and resolve(str(node["_target_"]), at="trainer.strategy") is None:
        return make(from_plain(node))  # a class of the user
    if world == 1:
        return "auto"
    static = cfg.static_graph in ("auto", True) and asked != "ddp_find_unused_parameters_true"
    options: dict[str, Any] = {
        "gradient_as_bucket_view": True,
        "static_graph": static,
        "find_unused_parameters": not static,
    }
    options |= {name: value for name, value in node.items() if name != "_target_"}
    # The CPU side of the group carries signals and flags, so that no rank reads a device for them.
    return DDPStrategy(process_group_backend="cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", **options)


def needs_checkpointing(callbacks: Iterable[L.Callback]) -> bool:
    """Return whether one of the callbacks saves checkpoints, which Lightning must then allow."""
    return any(isinstance(callback, Checkpoint) for callback in callbacks)


def draws_progress(callbacks: Iterable[L.Callback]) -> bool:
    """Return whether one of the callbacks draws a progress bar."""
    return any(isinstance(callback, ProgressBar) for callback in callbacks)


def why_ended(trainer: L.Trainer, cfg: DictConfig) -> tuple[str, str]:
    """Return which callback ended the training before its last step, for a message, and the key that sets its limit.

    Args:
        trainer: has stopped, with ``should_stop``.
        cfg: the resolved configuration.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    nodes = further_callbacks(to_plain(cfg))
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and (callback.stopped_epoch or callback.wait_count >= callback.patience):
            key = next((key for key, node in nodes.items() if node.get("monitor") == callback.monitor), "callbacks")
            return (
                f"EarlyStopping: {callback.monitor} has not improved on {float(callback.best_score):.4g}",
                f"{key}.patience",
            )
        if isinstance(callback, Timer) and (callback.time_remaining() or 1) <= 0:
            named = [f"{key}.duration" for key, node in nodes.items() if str(node["_target_"]).endswith(".Timer")]
            return "the time limit is reached", next(iter(named), "trainer.max_time")
    return "a callback", next(iter(nodes), "callbacks")


class Watch(L.Callback):
    """Shows further callbacks a score only in the epoch that computed it, and checks that their metrics exist.

    An EarlyStopping would otherwise count the epochs between two scores as epochs without an improvement.

    Args:
        callbacks: by their keys.
        plain: the configuration in plain containers.

    Raises:
        UserError: from the hooks: a monitored metric is not logged; the message lists those that are.
    """

    def __init__(self, callbacks: Mapping[str, L.Callback], plain: Mapping[str, Any]) -> None:
        self.plain = plain
        self.monitored = {key: found for key, one in callbacks.items() if (found := getattr(one, "monitor", None))}
        self.every = plain["callbacks"]["online"]["every_n_epochs"]
        self.patience = {one: one.patience for one in callbacks.values() if isinstance(one, EarlyStopping)}
        for callback in callbacks.values():
            if isinstance(callback, EarlyStopping) and callback.monitor.startswith("online/") and self.every > 1:
                callback.strict = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a score that needs labels where there are none."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it without declaring it
        labeled = data.load().train.labels is not None
        names = set(metric_names(self.plain)) - set(metric_names(self.plain, labeled=labeled))
        for key, monitor in self.monitored.items():
            if monitor in names:
                raise UserError(no_metric(key, monitor, metric_names(self.plain, labeled=labeled)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the configured patience, which a checkpoint has overwritten in a resumed run."""
        for callback, patience in self.patience.items():
            callback.patience = patience

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the scores of earlier epochs."""
        for name in [name for name in trainer.callback_metrics if name.startswith("online/")]:
            del trainer.callback_metrics[name]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse a metric that is not there although it is due."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for key, monitor in self.monitored.items():
            is_due = not monitor.startswith("online/") or (trainer.current_epoch + 1) % self.every == 0
            if is_due and monitor not in trainer.callback_metrics and not trainer.should_stop:
                raise UserError(no_metric(key, monitor, sorted(trainer.callback_metrics)))
