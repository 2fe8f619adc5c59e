"""Write metrics.csv, one row at a time, so that a killed run has all its rows."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from simclr_lightning.files import write_text
from simclr_lightning.run_folder import read_cells


class MetricsCSV(Logger):
    """Append rows to metrics.csv; a resumed run drops the rows after its checkpoint, since it repeats those steps.

    Args:
        path: the file.
        step: the optimizer step at which the run starts.
    """

    def __init__(self, path: Path, *, step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.columns: list[str] = ["step", "epoch"]
        self.rewrite = True  # the first row rewrites the file, with the header and the rows up to the checkpoint
        if path.exists():
            columns, rows = read_cells(path)
            self.rows = [row for row in rows if row.get("step") and int(row["step"]) <= step]
            self.columns = columns or self.columns

    @property
    def name(self) -> str:
        """Return the logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """Return an empty string: a run has one file, and no versions."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in .hydra/config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row immediately."""
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
