"""Where the numbers go: metrics.csv always, W&B or TensorBoard when asked for."""

from __future__ import annotations

import contextlib
import csv
import io
import netrc
import os
import shlex
import threading
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from simclr_lightning.checkpoint import write_text
from simclr_lightning.cli.errors import UserError

SECONDS_TO_CLOSE = 10


class MetricsCSV(Logger):
    """Appends rows to metrics.csv; a resumed run cuts the rows after its checkpoint, which it will write again.

    Args:
        path: the file.
        step: the optimiser step that the run starts from.
    """

    def __init__(self, path: Path, *, step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.columns: list[str] = ["step", "epoch"]
        self.rewrite = True  # the first row writes the file anew: a header, or the rows that are kept
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.rows = [row for row in reader if row.get("step") and int(row["step"]) <= step]
                self.columns = list(reader.fieldnames or self.columns)

    @property
    def name(self) -> str:
        """The logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """One file a run: there are no versions."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is in .hydra/config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row at once, so that a killed run has all its rows."""
        row = {"step": str(step), **{name: f"{float(value):.8g}" for name, value in metrics.items()}}
        new = [name for name in row if name not in self.columns]
        self.rows.append(row)
        if new or self.rewrite:
            self.columns += new
            self.rewrite = False
            write_text(self.path, self._text(self.rows, header=True))
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._text([row], header=False))

    def _text(self, rows: list[dict[str, str]], *, header: bool) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def make_loggers(cfg: Any, folder: Path, *, step: int, plain: dict[str, Any]) -> list[Logger]:
    """The loggers of a run.

    Args:
        cfg: the logger group.
        folder: the run's folder.
        step: the optimiser step that the run starts from.
        plain: the whole configuration, for trackers.

    Raises:
        UserError: when the tracker's package is missing.
    """
    loggers: list[Logger] = [MetricsCSV(folder / "metrics.csv", step=step)]
    if cfg.name == "tensorboard":
        try:
            from lightning.pytorch.loggers import TensorBoardLogger

            loggers.append(TensorBoardLogger(folder, name="", version="tensorboard"))
        except ImportError as error:
            raise UserError(
                "logger=tensorboard needs a package: pip install 'simclr-lightning[tensorboard]'"
            ) from error
    if cfg.name == "wandb":
        loggers.append(_wandb(cfg, folder, plain))
    return loggers


def sync_command(folder: Path) -> str | None:
    """The command that uploads an offline W&B run, when there is one."""
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    return f"wandb sync {' '.join(shlex.quote(str(part)) for part in parts)}" if parts else None


def close_loggers(trainer: L.Trainer) -> None:
    """End all loggers; a W&B server that does not answer within `SECONDS_TO_CLOSE` is left to a later sync."""
    for logger in trainer.loggers:
        logger.finalize("success")
        run: Any = getattr(logger, "experiment", None)
        if hasattr(run, "finish") and hasattr(run, "settings"):
            _finish(run)


def _finish(run: Any) -> None:
    closing = threading.Thread(target=run.finish, daemon=True)
    closing.start()
    closing.join(SECONDS_TO_CLOSE)
    if closing.is_alive():
        print(f"W&B does not answer; upload later with: wandb sync {shlex.quote(str(Path(run.dir).parent))}")


@rank_zero_only
def _init_wandb(cfg: Any, folder: Path, plain: dict[str, Any], *, job_type: str = "train") -> Any:
    """Start the W&B run: online when a key is at hand, offline when there is none or the server does not answer."""
    import wandb

    mode: Any = os.environ.get("WANDB_MODE", "online") if cfg.mode == "auto" else cfg.mode
    server = os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url
    if mode == "online" and not _has_key(server):
        mode = "offline"  # online without a key would ask for one
    id_file = folder / (".wandb_id" if job_type == "train" else f".wandb_{job_type}_id")
    run_id = id_file.read_text().strip() if id_file.exists() else uuid.uuid4().hex[:8]
    id_file.write_text(run_id)
    options = {
        "project": cfg.project,
        "entity": cfg.entity,
        "dir": str(folder),
        "id": run_id,
        "name": folder.name,
        "group": next((part.name for part in (folder, folder.parent) if part.parent.name == "sweeps"), None),
        "job_type": job_type,
        "config": plain,
    }
    quiet = wandb.Settings(silent=True, init_timeout=8)
    try:
        return wandb.init(**options, mode=mode, resume="allow" if mode == "online" else None, settings=quiet)
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"W&B did not answer ({first}); tracking goes on offline")
        options["id"] = uuid.uuid4().hex[:8]  # the client holds on to the first one
        id_file.write_text(options["id"])
        return wandb.init(**options, mode="offline", settings=quiet)


def _wandb(cfg: Any, folder: Path, plain: dict[str, Any]) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(experiment=_init_wandb(cfg, folder, plain), save_dir=folder)


def _has_key(server: str) -> bool:
    """Whether `wandb login` or the environment left a key for the server; it is looked for and not read."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(server).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False


def log_pictures(trainer: L.Trainer, folder: Path) -> None:
    """Give the run's pictures to W&B, when it is there."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            for path in sorted(folder.glob("*.png")):
                logger.log_image(key=path.stem, images=[str(path)])


def log_report(cfg: Any, folder: Path) -> None:
    """Give a written report to W&B as a run of its own in the sweep's group: pictures, the table of runs, the HTML.

    Args:
        cfg: the logger group, of W&B.
        folder: where the report is.
    """
    import wandb

    folder = folder.absolute()
    run: Any = _init_wandb(cfg, folder, {}, job_type="report")
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        lines: list[list[Any]] = list(csv.reader(file))
    rows = [[_value(text) for text in line] for line in lines[1:]]
    logged = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
    table = wandb.Table(columns=lines[0], data=rows, allow_mixed_types=True)
    page = wandb.Html((folder / "report.html").read_text("utf-8"), inject=False)
    run.log({**logged, "runs": table, "report": page})
    _finish(run)


def _value(text: str) -> float | str | None:
    """A cell of a CSV file as a number where it is one, and None where it is empty."""
    try:
        return float(text)
    except ValueError:
        return text or None
