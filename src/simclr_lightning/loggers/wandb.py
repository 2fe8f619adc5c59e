"""Log a run to W&B: online if there is a key, else offline, without a prompt; an error of W&B never stops a run."""

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
SECONDS_TO_CLOSE = 9  # of these, pictures and tables may take:
SECONDS_FOR_RESULTS = 4
_STEP = "trainer/global_step"


class Tracker(Logger):
    """Log metrics to a W&B run; after the first error, print it and log nothing more.

    Args:
        run: the run object of wandb; None on ranks other than 0.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        self.lost = run is None

    @property
    def name(self) -> str:
        """Return the logger's name."""
        return "wandb"

    @property
    def version(self) -> str | None:
        """Return the id of the W&B run."""
        return None if self.run is None else str(self.run.id)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: W&B got the whole configuration at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row of metrics at an optimizer step."""
        self._try(lambda: self.run.log({**metrics, _STEP: step}))

    @rank_zero_only
    def close(self, last: Callable[[Any], None] | None = None) -> None:
        """Log the results and finish the run in at most `SECONDS_TO_CLOSE`; else print the command that uploads it.

        Args:
            last: called with the run object of wandb, to log pictures and tables.
        """
        if self.run is None:
            return
        done: list[bool] = []
        if last is not None:
            _within(SECONDS_FOR_RESULTS, lambda: self._try(lambda: last(self.run)))
        _within(SECONDS_TO_CLOSE - SECONDS_FOR_RESULTS, lambda: self._finish(done))
        if not done or self.lost:
            print(f"W&B does not respond; upload later with: wandb sync {shlex.quote(str(Path(self.run.dir).parent))}")

    def _finish(self, done: list[bool]) -> None:
        import wandb

        # A client whose service process died may raise anything, here and in its exit hook, which teardown removes.
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
        except Exception as error:  # no error of the client may stop the run
            self.lost = True
            print(f"W&B failed ({first_line(error)}); training continues without it")


def make_tracker(
    cfg: Any, folder: Path, plain: dict[str, Any], *, name: str | None = None, report: bool = False
) -> Tracker:
    """Return the logger of the W&B run for a run's folder; the W&B run is started or continued.

    Args:
        cfg: the logger group of the configuration.
        folder: the run's folder.
        plain: the whole resolved configuration in plain containers.
        name: the name of the W&B run; None: the name of the folder.
        report: the W&B run is for a report on the folder; it is in the group of the runs, and has another id.
    """
    return Tracker(_init(cfg, folder, plain, name=name or folder.name, report=report))


def sync_command(folder: Path) -> str | None:
    """Return the command that uploads the offline W&B runs of a folder; None if there are none."""
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    return f"wandb sync {' '.join(shlex.quote(str(part)) for part in parts)}" if parts else None


@rank_zero_only
def _init(cfg: Any, folder: Path, plain: dict[str, Any], *, name: str, report: bool) -> Any:
    """Return the run object of wandb, offline if there is no key or the server takes longer than `SECONDS_TO_START`."""
    import wandb

    mode: Any = os.environ.get("WANDB_MODE", "online") if cfg.mode == "auto" else cfg.mode
    server = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    if mode == "online" and not has_key(server):
        mode = "offline"  # online without a key, wandb would prompt for one
    options = _options(cfg, folder, plain, name=name, report=report)
    settings: dict[str, Any] = {"silent": True, "init_timeout": SECONDS_TO_START}
    settings |= {"finish_timeout": SECONDS_TO_CLOSE - SECONDS_FOR_RESULTS - 1, "finish_timeout_raises": True}
    quiet = wandb.Settings(**{key: value for key, value in settings.items() if key in wandb.Settings.model_fields})
    try:
        run = wandb.init(**options, mode=mode, resume="allow" if mode == "online" else None, settings=quiet)
    except Exception as error:  # the client raises many types
        print(f"W&B did not respond ({first_line(error)}); logging continues offline")
        options["id"] = uuid.uuid4().hex[:8]  # the client does not release the first id
        try:
            run = wandb.init(**options, mode="offline", settings=quiet)
        except Exception as again:
            print(f"W&B does not start ({first_line(again)}); metrics.csv has all metrics")
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
    if os.environ.get("WANDB_SWEEP_ID"):  # `wandb agent` has set project, group and id
        return options
    sweep = folder if (folder / MANIFEST).exists() else folder.parent if is_job(folder) else None
    group = cfg.group or (sweep.name if sweep else None)
    run_id = known.read_text().strip() if known.exists() else uuid.uuid4().hex[:8]
    return {**options, "project": cfg.project, "entity": cfg.entity, "group": group, "id": run_id}


def _id_file(folder: Path, *, report: bool) -> Path:
    """Return the file with the id of a folder's W&B run, which a resumed run continues."""
    return folder / (".wandb_report_id" if report else ".wandb_id")


def has_key(server: str) -> bool:
    """Return whether the environment or `wandb login` provides a key for the server; the key itself is not used."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(server).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Call ``act`` in a thread and wait at most some seconds; then leave the thread running."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)


def log_results(run: Any, folder: Path, summary: Mapping[str, Any]) -> None:
    """Log the pictures and the summary of a finished run to W&B."""
    import wandb

    rows = [[key, str(value)] for key, value in summary.items()]
    run.log({path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))})
    run.log({"results": wandb.Table(columns=["what", "value"], data=rows)})
    run.summary.update(dict(summary))


def log_report(cfg: Any, folder: Path) -> None:
    """Log a report to W&B as a separate W&B run in the sweep's group: plots, the table of runs, and the HTML.

    Args:
        cfg: the logger group of the configuration, with name "wandb".
        folder: the folder of the report.
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
    """Return a cell of a CSV file as a number if possible; None if it is empty."""
    try:
        return float(text)
    except ValueError:
        return text or None
