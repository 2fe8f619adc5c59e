"""Find, make and read the folder of one run.

``locate`` returns the run that a command line describes: a new one, or with ``ckpt_path`` the one that ``resume`` finds
and compares. ``run`` makes the folder, locks it, and writes and reads its configuration. ``encoder`` loads the encoder
of a run, an export or a state dict.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.app.runs.encoder import (
        encoder_of as encoder_of,
        load_export as load_export,
        start_of as start_of,
        untrained as untrained,
    )

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
