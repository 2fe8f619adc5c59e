"""Report on finished runs in tables and pictures: `write_report`.

``runs`` reads the folders of runs, ``settings`` groups and compares them, ``metrics`` lists the numbers that are
reported, ``paper`` has the paper's tables, ``content`` makes the sentences and tables, ``draw`` makes the pictures,
``blocks`` makes Markdown and HTML, ``write`` writes the files.
"""

from simclr_lightning.report.runs import ReportError, Run, read_runs
from simclr_lightning.report.settings import Comparison, Setting, compare, settings, swept_keys
from simclr_lightning.report.write import Report, write_report

__all__ = [
    "Comparison",
    "Report",
    "ReportError",
    "Run",
    "Setting",
    "compare",
    "read_runs",
    "settings",
    "swept_keys",
    "write_report",
]
