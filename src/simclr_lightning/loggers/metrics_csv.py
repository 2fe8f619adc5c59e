"""Write metrics.csv, a row at a time, so that a killed run has all its rows."""

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
            columns, rows = read_cells(path)
            self.rows = [row for row in rows if row.get("step") and int(row["step"]) <= step]
            self.columns = columns or self.columns

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
