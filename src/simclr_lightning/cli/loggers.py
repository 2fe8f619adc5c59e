"""Where the numbers go: metrics.csv always, W&B or TensorBoard when asked for."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from simclr_lightning.cli.errors import UserError
from simclr_lightning.files import write_text


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
        from simclr_lightning.cli.tracker import make_tracker

        loggers.append(make_tracker(cfg, folder, plain))
    return loggers


def close_loggers(trainer: L.Trainer, folder: Path, summary: Mapping[str, Any]) -> None:
    """End all loggers; W&B gets the run's pictures and its summary first."""
    from simclr_lightning.cli.tracker import Tracker

    for logger in trainer.loggers:
        logger.finalize("success")
        if isinstance(logger, Tracker):
            logger.close(lambda run: _log_results(run, folder, summary))


def _log_results(run: Any, folder: Path, summary: Mapping[str, Any]) -> None:
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

    from simclr_lightning.cli.tracker import make_tracker

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
