"""Run ``simclr evaluate RUN KEY=VALUE ...``: score one encoder by the paper's protocols."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig
from rich.console import Console

from simclr_lightning import app, machine
from simclr_lightning.app import runs, training
from simclr_lightning.app.config.composition import compose, conf_folder
from simclr_lightning.app.config.flags import read_flags
from simclr_lightning.app.config.plain import from_plain, to_plain
from simclr_lightning.app.config.quoting import as_value, quote_paths
from simclr_lightning.app.config.targets import check_targets
from simclr_lightning.app.config.validate import check_evaluation
from simclr_lightning.app.errors import UserError, explain, without_data_keys
from simclr_lightning.app.runs.run import read_config
from simclr_lightning.app.training.devices import all_devices
from simclr_lightning.cli.guard import guard
from simclr_lightning.data import SOURCES
from simclr_lightning.evaluation import protocols
from simclr_lightning.overrides import flag, is_given, key_of, without
from simclr_lightning.run_folder import CONFIG, FEATURES, flatten

USAGE: Final = """\
usage: simclr evaluate RUN ['protocol=[knn,lbfgs,linear,semi,finetune]'] [data=... data.path=...] [KEY=VALUE]
       RUN is a run's folder, an exported encoder, or a state dict with model=ARCHITECTURE
"""
DEFAULT: Final = ("knn", "lbfgs")  # the protocols if neither protocol= nor transfer= is given
CHOOSING: Final = ("linear", "finetune")  # the protocols that choose between several lr on held-out images


def main(argv: Sequence[str]) -> int:
    """Run ``simclr evaluate`` with these arguments; return the exit code."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"{USAGE}\nKeys and defaults:\n")
        print((conf_folder() / "evaluate.yaml").read_text("utf-8"), end="")
        return 0
    overrides = quote_paths(argv[1:])
    return guard(lambda: _main(argv, overrides), debug=flag(overrides, "debug"))


def _main(argv: Sequence[str], overrides: list[str]) -> int:
    if not argv or ("=" in argv[0] and not Path(argv[0]).exists()):
        raise UserError(f"the first argument must be a run's folder or an exported encoder\n{USAGE}", code=2)
    run, given = Path(argv[0]), read_flags(overrides)
    if given.shows or given.multirun:
        raise UserError(f"evaluate takes no flag but --config-dir DIR\n{USAGE}", code=2)
    overrides = given.overrides
    cfg = configure(run, overrides)
    others = configure_transfer(run, overrides, cfg)
    return _evaluate(run, cfg, others, sized=is_given(overrides, "views.size"))


def _evaluate(run: Path, cfg: DictConfig, others: dict[str, DictConfig], *, sized: bool) -> int:
    training.quiet_libraries()
    machine.limit_threads()
    folder = run if run.is_dir() else run.parent
    encoder = runs.encoder_of(run, cfg)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} is not writable, but evaluation.json is written there; copy the run elsewhere")
    assert encoder.size is not None
    size = int(cfg.views.size) if sized else encoder.size
    plain = to_plain(cfg)
    asked = plain["protocol"] or (() if others else DEFAULT)
    asked = [asked] if isinstance(asked, str) else list(asked)
    data = _data(plain, size, plain["knn"]["k"] if "knn" in asked else 1, asked) if asked else None
    transfer = {}
    for name, other in others.items():
        with paths_named(name):
            transfer[name] = _data(to_plain(other), size, 1, ["lbfgs"])
    console = Console(highlight=False)
    for images in (data, *transfer.values()):
        for line in images.load().notes if images is not None else ():
            console.print(line, style="dim", markup=False, soft_wrap=True)
    evaluation = protocols.Evaluation(
        all_devices(plain["accelerator"]), console, plain["precision"], plain["seeds"],
        cache=folder / FEATURES if plain["cache"] else None, start=partial(runs.start_of, run),
    )  # fmt: skip
    score = partial(evaluation.run, data=data, protocols=asked, options=plain, transfer=transfer)
    scores, bare = score(encoder), {}
    if plain["untrained"]:
        evaluation.cache, evaluation.start = None, partial(runs.start_of, run, fresh=True)
        fresh = runs.untrained(encoder, seed=plain["seed"], trusted=tuple(cfg.trusted))
        bare = {one.key: one for one in score(fresh, what="untrained ")}
    found = protocols.found(encoder, data, scores, bare, head=_head(plain, size, data is None))
    app.show_results(found, console)
    for path in app.write_results(found, folder):
        print(f"written to {path}")
    return 0


def configure(run: Path, overrides: Sequence[str]) -> DictConfig:
    """Return the checked configuration of an evaluation; without ``data=`` it has the data keys of the run.

    Raises:
        UserError: the message names the first key that is wrong.
    """
    cfg = compose([*_saved_data(run, overrides), *overrides], name="evaluate")
    check_evaluation(cfg)
    check_targets(cfg, trusted=tuple(cfg.trusted))
    return cfg


def configure_transfer(run: Path, overrides: Sequence[str], cfg: DictConfig) -> dict[str, DictConfig]:
    """Return a configuration for each data set of ``transfer``: the given overrides, with ``data`` replaced.

    Raises:
        UserError: as `configure`, or ``paths`` has no path for a data set that needs one.
    """
    rest, found = without(overrides, "data"), {}
    for name in cfg.transfer:
        path = cfg.paths.get(name)
        with paths_named(name):
            own = [f"data={name}", *([f"data.path={as_value(path)}"] if path else [])]
            found[name] = configure(run, [*rest, *own])
    return found


@contextmanager
def paths_named(name: str) -> Iterator[None]:
    """Inside, messages name ``paths.NAME``, which the user can set, for ``data.path``, and no ``data.dataset`` keys."""
    try:
        yield
    except Exception as error:
        text = explain(error)
        if text is None:
            raise
        code = error.code if isinstance(error, UserError) else 1
        text = without_data_keys(text).replace("data.path", f"paths.{name}")
        raise UserError(text, code=code) from error


def _data(plain: dict[str, Any], size: int, k: int, asked: Sequence[str]) -> Any:
    """Return the data module of labeled images, after checking that they can be scored."""
    plain["views"]["size"] = size
    cfg = from_plain(plain)
    training.check_images(cfg)
    data = training.make_data(cfg)
    parts = protocols.checked_parts(data, k)
    choosing = [name for name in asked if name == "lbfgs" or (name in CHOOSING and len(_rates(plain, name)) > 1)]
    if choosing and not len(parts.held_out):
        path = "" if data.path is None else f", data.path={data.path}"
        raise UserError(
            f"{plain['data']['dataset']['_target_']}{path}: no image is held out, and "
            f"{' and '.join(choosing)} would choose l2 or lr by held-out images\n"
            "give more images, or score by protocol=knn"
        )
    return data


def _rates(plain: dict[str, Any], protocol: str) -> list[Any]:
    """Return the learning rates of a protocol, one or several."""
    asked = plain[protocol]["lr"]
    return asked if isinstance(asked, list) else [asked]


def _head(plain: dict[str, Any], size: int, only_transfer: bool) -> dict[str, Any]:
    target, path = plain["data"]["dataset"]["_target_"], plain["data"]["path"]
    own = {"data": None, "path": None} if only_transfer else {"data": target, "path": path}
    return {**own, "seed": plain["seed"], "seeds": plain["seeds"], "size": size}


def _saved_data(run: Path, overrides: Sequence[str]) -> list[str]:
    """Return the data keys and the seed of a run as overrides; empty if ``data=`` is given or RUN is not a run."""
    if "data" in map(key_of, overrides) or not (run / CONFIG).parent.is_dir():
        return []
    try:
        saved = to_plain(read_config(run))
    except UserError as error:
        raise UserError(f"{error}\nname the images: data=...") from error
    leaves = {f"data.{key}": value for key, value in flatten(saved["data"]).items()} | {"seed": saved.get("seed", 0)}
    # The option that has these keys; for a data set of the user, the default option, whose keys all options have.
    name = str(leaves.get("data.dataset._target_")).removeprefix("simclr_lightning.data.")
    group = [f"data={name}"] if name in SOURCES else []
    return [*group, *(f"++{key}={as_value(value)}" for key, value in leaves.items())]
