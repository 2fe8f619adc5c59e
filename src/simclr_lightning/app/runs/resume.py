"""Resume a run (``ckpt_path=``): find its folder and checkpoint, apply the overrides, refuse other differences.

`MAY_DIFFER` lists the keys that may differ without ``force=true``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig

from simclr_lightning import checkpoint
from simclr_lightning.app.config.composition import compose_resumed, output_root
from simclr_lightning.app.config.grammar import value_of
from simclr_lightning.app.config.plain import NOT_OF_THE_RUN, diff, from_plain, to_plain, with_absolute_paths
from simclr_lightning.app.config.validate import check_run
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.run import Run, read_config, saved_overrides, started_in
from simclr_lightning.overrides import is_given, replaced
from simclr_lightning.run_folder import CHECKPOINTS, typed

MAY_DIFFER: Final = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.devices"),
    *("data.num_workers", "data.resident", "data.dataset.on_corrupt", "data.dataset.max_skipped"),
    *("data.dataset.max_pixels", "logger", "callbacks", "early_stopping", "preflight"),
    *("trainer.max_time", "trainer.profiler", "trainer.detect_anomaly", "trainer.log_every_n_steps"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.fast_dev_run"),
)
"""Keys, and nodes of keys, that a resumed run may change without ``force=true``."""
_HAVE_STATE: Final = ("model.encoder.", "model.projector.", "optimizer._target_")


def resume(given: Sequence[str]) -> Run:
    """Return the run that ``ckpt_path`` names, with the given overrides applied to its saved configuration.

    Raises:
        UserError: there is no such run or no valid checkpoint, or a key differs that is not in `MAY_DIFFER`.
    """
    folder, chosen = _named(given)
    overrides = replaced(saved_overrides(folder), given)
    saved = to_plain(read_config(folder))
    full = _checked(folder, saved, overrides[: len(overrides) - len(given)], given)
    cfg = without_start_keys(full)
    lines = [
        f"{key}: {before} -> {now}"
        for key, (before, now) in diff(with_absolute_paths(saved), to_plain(cfg)).items()
        if not is_given([key], *MAY_DIFFER) and (before != "(absent)" or is_given(given, key))
    ]
    _check_same_network(folder, saved, to_plain(cfg), given)
    if lines and full.force not in (True, "all"):
        shown = lines[:3] + ([f"and {len(lines) - 3} more"] if len(lines) > 3 else [])
        raise UserError(
            f"{folder} was trained with another configuration:\n  " + "\n  ".join(shown[:3]) + "\n"
            "remove these overrides, start a new run, or add force=true to resume with these differences"
        )
    notes: tuple[str, ...] = ()
    if chosen is None:
        found = checkpoint.newest(folder)
        if found is None:
            raise UserError(f"{folder} has no valid checkpoint in checkpoints/; start a new run")
        chosen, damaged = found
        notes = tuple(f"{path} is damaged; {chosen.name} is used instead" for path in damaged)
    return Run(folder, cfg, tuple(overrides), full.hydra, chosen, notes, full.force in ("images", "all"))


def _checked(folder: Path, saved: Mapping[str, Any], before: Sequence[str], given: Sequence[str]) -> DictConfig:
    try:
        full = compose_resumed(saved, before, given)
        check_run(full)
        return full
    except UserError as error:
        if "there is no package" not in str(error) or (started := started_in(folder)) is None:
            raise
        raise UserError(f"{error}\nthis run was started in {started}", code=error.code) from error


def _check_same_network(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any], given: Sequence[str]) -> None:
    """Refuse another network or kind of optimizer, whose state the checkpoint does not hold; ``force`` cannot help."""
    changed = [
        key
        for key, (before, _) in diff(saved, now).items()
        if key.startswith(_HAVE_STATE) and (before != "(absent)" or is_given(given, key))
    ]
    if changed:
        is_encoder = changed[0].startswith("model.encoder.")  # the run's weights do not fit another encoder
        raise UserError(
            f"{changed[0]} differs from the run in {folder}, and its checkpoint has no state for that\n"
            "leave the key as it was, or start a new run"
            + ("" if is_encoder else f" from the run's weights: model.weights={typed(folder)}")
        )


def without_start_keys(full: DictConfig) -> DictConfig:
    """Return the resolved configuration, its paths absolute, without the keys of `NOT_OF_THE_RUN`."""
    own = {key: value for key, value in to_plain(full).items() if key not in NOT_OF_THE_RUN}
    return from_plain(with_absolute_paths(own))


def _named(given: Sequence[str]) -> tuple[Path, Path | None]:
    """Return the folder of the run that ``ckpt_path`` names, and the checkpoint if it names a file."""
    named = str(value_of(given, "ckpt_path"))
    if "://" in named:
        raise UserError(f"ckpt_path={named}: a URL is not supported; give a file or a run's folder on this machine")
    if named == "last":
        root = Path(str(value_of(given, "hydra.run.dir") or output_root()))
        folder = next(checkpoint.unfinished(root), None)
        if folder is None:
            raise UserError(f"ckpt_path=last: there is no unfinished run under {root}; name one: ckpt_path=DIR")
        return folder.absolute(), None
    path = Path(named).absolute()
    if path.is_dir():
        return path, None
    if path.is_file():
        if path.parent.name != CHECKPOINTS:
            raise UserError(
                f"ckpt_path={named} is not in the checkpoints/ folder of a run; to load only weights: "
                f"model.weights={typed(Path(named))}"
            )
        return path.parent.parent, path
    raise UserError(f"ckpt_path={named}: no such file or folder; give a run's folder, a checkpoint, or last")
