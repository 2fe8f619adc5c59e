"""Run on several devices: one process (rank) per device, started by torch's elastic launcher, stopped together."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from simclr_lightning import machine
from simclr_lightning.app import errors, training
from simclr_lightning.app.config.trusted import look_in_current_folder
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.locate import prepare
from simclr_lightning.app.runs.run import Run, folder_key, locked, read_config, reserve
from simclr_lightning.app.training.devices import accelerator, device_count
from simclr_lightning.stopping import STOP

SECONDS_TO_STOP = 20  # after which a rank that does not answer is killed
SECONDS_BETWEEN_LOOKS = 0.1
_PR_SET_PDEATHSIG = 1
# A lost peer in a RuntimeError of a backend of torch.distributed, such as "[/pytorch/third_party/gloo/...]".
_LOST_PEER = re.compile(r"\b(gloo|NCCL|TCPStore|connection (reset|closed|refused)|broken pipe)\b", re.IGNORECASE)


def run_ranks(folder: Path, devices: int, *, checkpoint: Path | None, any_images: bool, debug: bool) -> int:
    """Start one process per device, wait for all of them and return the run's exit code.

    When one rank dies, the others are killed within `SECONDS_TO_STOP` seconds, and the message names the dead one. A
    signal to this process is passed on to the ranks, and a second signal kills them. The elastic launcher runs in a
    thread, where it sets no signal handlers: its own handler would raise an exception.

    Args:
        folder: the run's folder, which contains .hydra/config.yaml.
        devices: number of processes.
        checkpoint: the checkpoint to resume from; None: a new run.
        any_images: resume although the images differ.
        debug: ranks print their tracebacks.

    Raises:
        UserError: a rank was killed or has failed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    reports = folder / ".ranks"
    reports.mkdir(exist_ok=True)
    for old in reports.iterdir():
        old.unlink()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, machine.cores() // devices)))
    words = [str(folder), str(checkpoint or ""), *(["any_images"] if any_images else []), *(["debug"] if debug else [])]
    with tempfile.TemporaryDirectory(prefix="simclr_ranks_") as logs:
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            local_addr="localhost",
            shutdown_timeout=SECONDS_TO_STOP,
        )
        start = partial(launch_agent, launch, sys.executable, ["-m", "simclr_lightning.cli", "rank", *words])
        with STOP.listening(patience=math.inf, again=False), ThreadPoolExecutor(1) as thread:
            ranks = thread.submit(start)
            _pass_signals_on(reports, ranks)
            try:
                ranks.result()
            except ChildFailedError as error:
                if signum := STOP.pending():
                    return 128 + signum
                return _explain(reports, {rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


def _pass_signals_on(reports: Path, ranks: Future[Any]) -> None:
    """Wait until all ranks have ended; pass the first signal on; after a second one or a time limit, kill them."""
    asked, deadline = set[str](), math.inf
    while not wait([ranks], SECONDS_BETWEEN_LOOKS).done:
        signum = STOP.pending()
        if not signum:
            continue
        deadline = min(deadline, time.monotonic() + SECONDS_TO_STOP)
        kill = len(STOP.received) > 1 or time.monotonic() > deadline
        for path in reports.glob("*.pid"):  # a rank that is still importing writes its file later, and is asked then
            if kill or path.stem not in asked:
                asked.add(path.stem)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.stem), signal.SIGKILL if kill else signum)


def rank_main(words: Sequence[str]) -> int:
    """Run one rank, ``simclr rank FOLDER CHECKPOINT [any_images] [debug]``, which `run_ranks` starts."""
    if len(words) < 2 or "RANK" not in os.environ:
        print(
            "error: the program itself starts `rank`; for several devices, type simclr train trainer.devices=2",
            file=sys.stderr,
        )
        return 2
    die_with_parent()
    folder, checkpoint = Path(words[0]), Path(words[1]) if words[1] else None
    rank = int(os.environ["RANK"])
    report = folder / ".ranks" / f"{rank}.json"
    (folder / ".ranks" / f"{os.getpid()}.pid").touch()
    try:
        cfg, any_images = read_config(folder), "any_images" in words[2:]
        for package in training.packages_of(cfg):
            look_in_current_folder(package)
        return training.run_process(folder, cfg, checkpoint=checkpoint, any_images=any_images, is_rank=True)
    except Exception as error:
        # Only the parent prints: it knows which rank failed first.
        message, code = errors.describe(error, log=folder / "train.log")
        report.write_text(json.dumps({"message": message, "code": code, "lost": _is_lost_peer(error)}))
        if "debug" in words[2:]:
            raise
        return code
    finally:
        import torch.distributed

        if torch.distributed.is_initialized():
            with contextlib.suppress(Exception):
                torch.distributed.destroy_process_group()


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that a killed parent leaves no process behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _explain(reports: Path, codes: dict[int, int]) -> int:
    """Return the exit code of a stopped run; else raise UserError for the first cause: a killed or a failed rank."""
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code not in (signal.SIGTERM, signal.SIGINT)}
    if killed:
        rank, signum = min(killed.items())
        hint = "; the machine may be out of memory: lower data.batch_size" if signum == signal.SIGKILL else ""
        raise UserError(
            f"rank {rank} was killed by {signal.Signals(signum).name}{hint}. "
            "All ranks were stopped; resume with ckpt_path=last"
        )
    stops = {code for code in codes.values() if code in (128 + signal.SIGTERM, 128 + signal.SIGINT)}
    if stops and len(stops) == len(set(codes.values())):
        return stops.pop()
    reported = {int(path.stem): json.loads(path.read_text()) for path in sorted(reports.glob("*.json"))}
    own = {rank: entry for rank, entry in reported.items() if not entry["lost"]} or reported
    if not own:
        rank, code = min(codes.items())
        raise UserError(f"rank {rank} ended with exit code {code} without a message; run again with debug=true")
    rank, entry = min(own.items())
    raise UserError(f"rank {rank}: {entry['message']}", code=entry["code"])


def _is_lost_peer(error: BaseException) -> bool:
    """Return whether the error only reports that another rank is gone."""
    from torch.distributed import DistError  # of torch.distributed's backends, its store and its network

    if isinstance(error, DistError | ConnectionError):
        return True
    return isinstance(error, RuntimeError) and bool(_LOST_PEER.search(str(error)))


def is_external() -> bool:
    """Return whether this process is a rank that torchrun or srun started.

    Raises:
        UserError: variables that torchrun sets are missing.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return False
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise UserError(
            f"the variables RANK and WORLD_SIZE are set, but {' and '.join(missing)} not: "
            "start several processes with torchrun, or unset RANK and WORLD_SIZE"
        )
    return True


def check_srun() -> None:
    """Refuse several tasks of srun on one node: each would be a separate run.

    Raises:
        UserError: with the way to start several nodes.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if not tasks.isdecimal():
        raise errors.UserError(f"the variable SLURM_NTASKS is {tasks!r}, which is not a number: unset it")
    if int(tasks) > 1 and "SLURM_PROCID" in os.environ:
        raise errors.UserError("under srun, start one task a node that runs torchrun: srun torchrun ... train.py ...")


def run_external(run: Run, started: float, known: list[Path]) -> int:
    """Run this process as a rank that torchrun started; rank 0 makes the folder and broadcasts it."""
    import torch

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
            held.enter_context(locked(run.folder, folder_key(run)))
            shared[1] = prepare(run)
        torch.distributed.broadcast_object_list(shared, src=0)
        folder = Path(shared[0])
        known.append(folder)
        if not shared[1]:
            return 0
        return training.run_process(
            folder, run.cfg, checkpoint=run.checkpoint, any_images=run.any_images, started=started
        )
