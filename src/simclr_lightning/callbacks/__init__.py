"""Lightning callbacks: ``Trainer(callbacks=[StepMetrics(), Health(), OnlineScore(), ...])``.

``metrics`` logs the loss, ``health`` stops on NaN and signals, ``online`` scores the encoder between epochs,
``hardness`` logs how hard the negatives are, ``averaging`` keeps an average of the weights, ``checkpoints`` saves the
run, ``progress`` draws a bar; ``rows`` has what they share.
"""

from simclr_lightning.callbacks.averaging import AveragedWeights, averaged
from simclr_lightning.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, save_last
from simclr_lightning.callbacks.hardness import Hardness
from simclr_lightning.callbacks.health import Health, NonFiniteError
from simclr_lightning.callbacks.metrics import MeanOverRanks, StepMetrics
from simclr_lightning.callbacks.online import OnlineScore, label_free, probe_scores
from simclr_lightning.callbacks.progress import RunProgress
from simclr_lightning.callbacks.rows import LOG, log_row
from simclr_lightning.data.images import bank_indices
from simclr_lightning.selection import SELECTABLE, selected
from simclr_lightning.stopping import Stopped

__all__ = [
    "LOG",
    "SELECTABLE",
    "AtomicCheckpointIO",
    "AveragedWeights",
    "Checkpoints",
    "Hardness",
    "Health",
    "MeanOverRanks",
    "NonFiniteError",
    "OnlineScore",
    "RunProgress",
    "StepMetrics",
    "Stopped",
    "averaged",
    "bank_indices",
    "label_free",
    "log_row",
    "probe_scores",
    "save_last",
    "selected",
]
