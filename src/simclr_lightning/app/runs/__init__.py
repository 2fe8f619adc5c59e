"""One run's folder: ``run`` makes and reads it, ``resume`` finds one to go on with, ``locate`` decides and checks.

``encoder`` loads the encoder that a run, an export or a state dict holds.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.app.runs.encoder import encoder_of as encoder_of, start_of as start_of, untrained as untrained

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
