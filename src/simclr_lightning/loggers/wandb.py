"""W&B: online when a key is at hand, offline otherwise, never a prompt; whatever becomes of it, training goes on."""

from __future__ import annotations

import contextlib
import csv
import netrc
import os
import shlex
import threading
import uuid
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from simclr_lightning.run_folder import MANIFEST, is_job
from simclr_lightning.text import first_line

SECONDS_TO_START = 8
SECONDS_TO_CLOSE = 9  # of which for pictures and tables:
SECONDS_FOR_RESULTS = 4
_STEP = "trainer/global_step"


class Tracker(Logger):
    """A W&B run as a logger. The first trouble is said, and nothing more is sent: it never stops the training.

    Args:
        run: W&B's run; None on ranks other than 0.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        self.lost = run is None

    @property
    def name(self) -> str:
        """The logger's name."""
        return "wandb"

    @property
    def version(self) -> str | None:
        """The run's id."""
        return None if self.run is None else str(self.run.id)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The whole configuration was given at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row, by optimiser step."""
        self._try(lambda: self.run.log({**metrics, _STEP: step}))

    @rank_zero_only
    def close(self, last: Callable[[Any], None] | None = None) -> None:
        """Send the last things and end, in `SECONDS_TO_CLOSE` at most; the rest is on disk, and how to send it is said.

        Args:
            last: is given W&B's run to log pictures and tables, which may wait for the server.
        """
        if self.run is None:
            return
        done: list[bool] = []
        if last is not None:
            _within(SECONDS_FOR_RESULTS, lambda: self._try(lambda: last(self.run)))
        _within(SECONDS_TO_CLOSE - SECONDS_FOR_RESULTS, lambda: self._finish(done))
        if not done or self.lost:
            print(f"W&B does not answer; upload later with: wandb sync {shlex.quote(str(Path(self.run.dir).parent))}")

    def _finish(self, done: list[bool]) -> None:
        import wandb

        # A client that lost its own process raises what it likes; its hook at the program's end would too.
        with contextlib.suppress(Exception):
            self.run.finish()
            done.append(True)
        with contextlib.suppress(Exception):
            wandb.teardown()

    def _try(self, send: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            send()
        except Exception as error:  # whatever its client raises, a run's hours are worth more
            self.lost = True
            print(f"W&B is lost ({first_line(error)}); training goes on without it")


def make_tracker(
    cfg: Any, folder: Path, plain: dict[str, Any], *, name: str | None = None, report: bool = False
) -> Tracker:
    """Start or continue the W&B run of a run's folder.

    Args:
        cfg: the logger group.
        folder: the run's folder.
        plain: the whole resolved configuration.
        name: of the W&B run; None: the folder's.
        report: the run is a report on the folder, in the group of its runs, and has an id of its own.
    """
    return Tracker(_init(cfg, folder, plain, name=name or folder.name, report=report))


def sync_command(folder: Path) -> str | None:
    """The command that uploads an offline W&B run, when there is one."""
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    return f"wandb sync {' '.join(shlex.quote(str(part)) for part in parts)}" if parts else None


@rank_zero_only
def _init(cfg: Any, folder: Path, plain: dict[str, Any], *, name: str, report: bool) -> Any:
    """W&B's run; offline when there is no key or the server does not answer in `SECONDS_TO_START`."""
    import wandb

    mode: Any = os.environ.get("WANDB_MODE", "online") if cfg.mode == "auto" else cfg.mode
    server = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    if mode == "online" and not has_key(server):
        mode = "offline"  # online without a key would ask for one
    options = _options(cfg, folder, plain, name=name, report=report)
    settings: dict[str, Any] = {"silent": True, "init_timeout": SECONDS_TO_START}
    settings |= {"finish_timeout": SECONDS_TO_CLOSE - SECONDS_FOR_RESULTS - 1, "finish_timeout_raises": True}
    quiet = wandb.Settings(**{key: value for key, value in settings.items() if key in wandb.Settings.model_fields})
    try:
        run = wandb.init(**options, mode=mode, resume="allow" if mode == "online" else None, settings=quiet)
    except Exception as error:  # its client raises many types
        print(f"W&B did not answer ({first_line(error)}); tracking goes on offline")
        options["id"] = uuid.uuid4().hex[:8]  # the client holds on to the first one
        try:
            run = wandb.init(**options, mode="offline", settings=quiet)
        except Exception as again:
            print(f"W&B does not start ({first_line(again)}); metrics.csv has everything")
            return None
    _id_file(folder, report=report).write_text(run.id)
    run.define_metric(_STEP)
    run.define_metric("*", step_metric=_STEP, step_sync=True)
    return run


def _options(cfg: Any, folder: Path, plain: dict[str, Any], *, name: str, report: bool) -> dict[str, Any]:
    known = _id_file(folder, report=report)
    options = {
        "dir": str(folder),
        "name": name,
        "job_type": "report" if report else cfg.job_type,
        "tags": list(cfg.tags),
        "config": plain,
    }
    if os.environ.get("WANDB_SWEEP_ID"):  # under `wandb agent`, which has chosen project, group and id
        return options
    sweep = folder if (folder / MANIFEST).exists() else folder.parent if is_job(folder) else None
    group = cfg.group or (sweep.name if sweep else None)
    run_id = known.read_text().strip() if known.exists() else uuid.uuid4().hex[:8]
    return {**options, "project": cfg.project, "entity": cfg.entity, "group": group, "id": run_id}


def _id_file(folder: Path, *, report: bool) -> Path:
    """Where a folder keeps the id of its W&B run: a resumed run goes on under it."""
    return folder / (".wandb_report_id" if report else ".wandb_id")


def has_key(server: str) -> bool:
    """Whether `wandb login` or the environment left a key for the server; it is looked for and not read."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(server).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Wait for something for some seconds, and leave it to itself then."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)


def log_results(run: Any, folder: Path, summary: Mapping[str, Any]) -> None:
    """Give a finished run's pictures and summary to W&B."""
    import wandb

    rows = [[key, str(value)] for key, value in summary.items()]
    run.log({path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))})
    run.log({"results": wandb.Table(columns=["what", "value"], data=rows)})
    run.summary.update(dict(summary))


def log_report(cfg: Any, folder: Path) -> None:
    """Give a written report to W&B as a run of its own in the sweep's group: pictures, the table of runs, the HTML.

    Args:
        cfg: the logger group, of W&B.
        folder: where the report is.
    """
    import wandb

    folder = folder.absolute()
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines: list[list[Any]] = list(csv.reader(file))
    rows = [[_value(text) for text in line] for line in lines[1:]]
    logged: dict[str, Any] = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
    table = wandb.Table(columns=lines[0], data=rows, allow_mixed_types=True)
    page = wandb.Html((folder / "report.html").read_text("utf-8"), inject=False)
    make_tracker(cfg, folder, {}, report=True).close(lambda run: run.log({**logged, "runs": table, "report": page}))


def _value(text: str) -> float | str | None:
    """A cell of a CSV file as a number where it is one, and None where it is empty."""
    try:
        return float(text)
    except ValueError:
        return text or None
