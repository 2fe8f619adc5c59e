"""Finished runs -> tables and pictures: read runs, group them into settings, say and draw what they came to.

``write_report(folder)`` does all of it; ``read_runs``, ``swept_keys``, ``settings`` and ``compare`` are its pure parts.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.report.grouping import Comparison as Comparison
    from simclr_lightning.report.grouping import Setting as Setting
    from simclr_lightning.report.grouping import compare as compare
    from simclr_lightning.report.grouping import settings as settings
    from simclr_lightning.report.grouping import swept_keys as swept_keys
    from simclr_lightning.report.runs import ReportError as ReportError
    from simclr_lightning.report.runs import Run as Run
    from simclr_lightning.report.runs import read_runs as read_runs
    from simclr_lightning.report.write import Report as Report
    from simclr_lightning.report.write import write_report as write_report

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
