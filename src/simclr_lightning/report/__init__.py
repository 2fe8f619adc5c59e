"""Report on finished runs in tables and pictures: `write_report`.

``runs`` reads the folders of runs, ``settings`` groups and compares them, ``metrics`` lists the numbers that are
reported, ``paper`` has the paper's tables, ``content`` makes the sentences and tables, ``draw`` makes the pictures,
``blocks`` makes Markdown and HTML, ``write`` writes the files.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.report.grouping import (
        Comparison as Comparison,
        Setting as Setting,
        compare as compare,
        settings as settings,
        swept_keys as swept_keys,
    )
    from simclr_lightning.report.runs import ReportError as ReportError, Run as Run, read_runs as read_runs
    from simclr_lightning.report.write import Report as Report, write_report as write_report

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
