"""Log the metrics of a run: ``metrics_csv`` writes metrics.csv, ``wandb`` logs to W&B, ``make`` chooses the loggers.

``services`` makes the loggers of MLflow and Comet, and ``background`` keeps them from delaying a step.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.loggers.wandb import log_report as log_report, sync_command as sync_command

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
