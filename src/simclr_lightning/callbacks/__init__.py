"""What happens around the training step: health, scores between epochs, checkpoints, metrics, progress, and
how hard the negatives are.

Every callback works without the command line: ``Trainer(callbacks=[StepMetrics(), Health(), OnlineScore(), ...])``.
"""

from simclr_lightning.callbacks.checkpoints import Checkpoints, save_last
from simclr_lightning.callbacks.hardness import Hardness
from simclr_lightning.callbacks.health import Health, NonFiniteError, Stopped
from simclr_lightning.callbacks.metrics import MeanOverRanks, StepMetrics
from simclr_lightning.callbacks.online import OnlineScore, bank_indices, warn_if_collapsed
from simclr_lightning.callbacks.progress import RunProgress
from simclr_lightning.callbacks.rows import LOG, log_row

__all__ = [
    "LOG",
    "Checkpoints",
    "Hardness",
    "Health",
    "MeanOverRanks",
    "NonFiniteError",
    "OnlineScore",
    "RunProgress",
    "StepMetrics",
    "Stopped",
    "bank_indices",
    "log_row",
    "save_last",
    "warn_if_collapsed",
]
