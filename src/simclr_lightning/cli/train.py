"""``simclr train KEY=VALUE ...``: one run, or with -m a sweep of runs."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simclr_lightning.cli import config, errors

if TYPE_CHECKING:
    from simclr_lightning.cli.folder import Run

# Flags that only look at the configuration: Hydra answers them.
HYDRA_FLAGS = (
    "--help",
    "-h",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--resolve",
    "--package",
    "-p",
    "--hydra-help",
    "--version",
)


def main(argv: Sequence[str]) -> int:
    """Train as the words say; returns the exit code (0 only when a run is finished, or asked to train nothing)."""
    started = time.time()
    words = config.quote_paths(argv)
    folder: list[Path] = []
    return errors.guard(
        lambda: _main(words, started, folder),
        debug=config.flag(words, "debug"),
        log=lambda: folder[0] / "train.log" if folder else None,
    )


def check(words: Sequence[str]) -> Run:
    """Compose and check everything that can be known before any work; nothing is written.

    Raises:
        UserError: for the first mistake.
    """
    from simclr_lightning.cli import checks, folder

    run = folder.locate(words)
    composed = config.compose(run.overrides)
    checks.check_config(composed)
    checks.check_targets(composed, trusted=tuple(composed.trusted))
    return run


def _main(words: list[str], started: float, folder: list[Path]) -> int:
    if any(word in ("-m", "--multirun") for word in words):
        return _sweep(words)
    if any(word.split("=")[0] in HYDRA_FLAGS for word in words):
        return _hydra(words)
    external = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not external:
        _check_srun()
    run = check(words)
    if config.flag(words, "dry_run"):
        from simclr_lightning.cli.dry_run import dry_run

        return dry_run(run)
    if not _is_finished(run):
        from simclr_lightning.cli.build import check_images

        check_images(run.cfg)
    return (_external if external else _single)(run, started, folder)


def _check_srun() -> None:
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if not tasks.isdecimal():
        raise errors.UserError(f"the variable SLURM_NTASKS is {tasks!r}, and no number: unset it")
    if int(tasks) > 1 and "SLURM_PROCID" in os.environ:
        raise errors.UserError("under srun, start one task a node that runs torchrun: srun torchrun ... train.py ...")


def _single(run: Run, started: float, known: list[Path]) -> int:
    from simclr_lightning import checkpoint
    from simclr_lightning.cli import judge
    from simclr_lightning.cli.devices import device_count
    from simclr_lightning.cli.folder import locked, reserve
    from simclr_lightning.cli.job import run_job
    from simclr_lightning.cli.ranks import run_ranks

    devices = device_count(run.cfg)
    run = reserve(run)
    with locked(run.folder):
        known.append(run.folder)
        if not _prepare(run):
            return 0
        if devices == 1:
            return run_job(run.folder, run.cfg, checkpoint=run.checkpoint, force=run.force, started=started)
        debug = config.flag(run.overrides, "debug")
        try:
            return run_ranks(run.folder, devices, checkpoint=run.checkpoint, force=run.force, debug=debug)
        finally:
            if "status" not in checkpoint.read_summary(run.folder):  # ranks that were killed wrote none
                checkpoint.write_summary(run.folder, judge.blank_summary(run.cfg))


def _prepare(run: Run) -> bool:
    """Clean and mark the folder; False when there is nothing left to do."""
    from simclr_lightning import checkpoint
    from simclr_lightning.cli import closing
    from simclr_lightning.cli.folder import write_config

    checkpoint.sweep_debris(run.folder)
    for note in run.notes:
        print(note)
    if _is_finished(run):
        steps = checkpoint.read_summary(run.folder)["steps"]
        print(f"{closing.shown(run.folder)} is finished: {steps} steps; to go on, raise trainer.max_epochs")
        return False
    write_config(run)
    (run.folder / checkpoint.SUMMARY).unlink(missing_ok=True)  # an earlier part's; until the end there is none
    return True


def _external(run: Run, started: float, known: list[Path]) -> int:
    """Under torchrun: this process is a rank already; rank 0's folder is everyone's."""
    import contextlib

    import torch

    from simclr_lightning.cli.devices import accelerator, device_count
    from simclr_lightning.cli.folder import locked, reserve
    from simclr_lightning.cli.job import run_job

    world, asked = int(os.environ["WORLD_SIZE"]), device_count(run.cfg) * run.cfg.trainer.num_nodes
    if world != asked:
        raise errors.UserError(
            f"{world} processes were started from outside, but trainer.devices x trainer.num_nodes is {asked}; "
            "give both as they were started",
            code=errors.CONFIGURATION,
        )
    backend = "cpu:gloo,cuda:nccl" if accelerator(run.cfg) == "cuda" else "gloo"
    torch.distributed.init_process_group(backend)
    first = torch.distributed.get_rank() == 0
    if first:
        run = reserve(run)
    shared: list[Any] = [str(run.folder), True]
    with contextlib.ExitStack() as held:
        if first:
            held.enter_context(locked(run.folder))
            shared[1] = _prepare(run)
        torch.distributed.broadcast_object_list(shared, src=0)
        folder = Path(shared[0])
        known.append(folder)
        if not shared[1]:
            return 0
        return run_job(folder, run.cfg, checkpoint=run.checkpoint, force=run.force, started=started)


def _is_finished(run: Run) -> bool:
    """Whether the run that is to be resumed has nothing left to do."""
    from simclr_lightning import checkpoint

    summary = checkpoint.read_summary(run.folder)
    if run.checkpoint is None or summary.get("status") != "finished":
        return False
    epochs, steps = summary.get("epochs"), summary.get("steps")
    if not isinstance(epochs, int | float) or not isinstance(steps, int):
        return False  # not what a run writes: the checkpoint tells
    by_epochs = run.cfg.trainer.max_epochs > epochs
    by_steps = run.cfg.trainer.max_steps < 0 or run.cfg.trainer.max_steps > steps
    return not (by_epochs and by_steps)


def _sweep(words: list[str]) -> int:
    from simclr_lightning.cli import launcher
    from simclr_lightning.cli.sweep import SweepStopped

    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        raise errors.UserError(
            "-m starts processes of its own and cannot run under torchrun or srun; leave one of them out"
        )
    rest = [word for word in words if word not in ("-m", "--multirun")]
    if "hydra/sweeper=optuna" in rest and importlib.util.find_spec("optuna") is None:
        raise errors.mistake("hydra/sweeper=optuna needs a package: pip install 'simclr-lightning[optuna]'")
    config.set_sweep_overrides([word for word in rest if not word.startswith("debug=")])
    check(config.first_job(rest))  # before Hydra makes anything that the words name
    launcher.failed.clear()
    try:
        _hydra(["--multirun", *rest])
    except SweepStopped as stop:
        if stop.code:
            print("stopped; the same command goes on with what is not finished", file=sys.stderr)
        return stop.code
    except Exception as error:  # a sweeper raises what it likes for a failed job, which is reported below
        if not launcher.failed:
            cause = errors.unwrapped(error)
            if errors.explain(cause) is not None:
                raise
            raise _of_the_sweeper(cause) from error
    if launcher.failed:
        print(f"\n{len(launcher.failed)} job(s) failed; the same command runs them again:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in launcher.failed), file=sys.stderr)
        return 1
    return 0


def _of_the_sweeper(error: BaseException) -> errors.UserError:
    """Where to look for what a sweeper raised: it does not name the key."""
    reason = str(error).strip().partition("\n")[0]
    return errors.mistake(
        f"the sweep cannot be made ({type(error).__name__}{': ' * bool(reason)}{reason})\n"
        "look at hydra.sweeper.*, hydra.launcher.* and the words with several values; the traceback: add debug=true"
    )


def _hydra(words: list[str]) -> int:
    """Let Hydra's own program answer: its flags, and the sweepers."""
    import hydra

    config.prepare_hydra()
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["simclr train", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come out as exceptions, which errors.guard words
    try:
        hydra.main(version_base="1.3", config_path=str(config.conf_folder()), config_name="train")(_never)()
    finally:
        sys.argv = before[0]
        os.environ.pop("HYDRA_FULL_ERROR")
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]
    return 0


def _never(cfg: Any) -> None:
    raise AssertionError("the launcher starts jobs as processes")
