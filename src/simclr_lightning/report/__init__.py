"""Finished runs -> tables and pictures: read runs, group them into settings, say and draw what they came to.

``write_report(folder)`` does all of it; ``read_runs``, ``swept_keys``, ``settings`` and ``compare`` are its pure parts.
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
