"""Implement the commands of ``cli``: compose a configuration, run one training process, start processes.

``config`` turns KEY=VALUE into one checked configuration. ``runs`` finds, makes and reads a run's folder. ``training``
is one process of a run. ``launch`` starts processes. ``errors`` turns exceptions into messages, ``commands`` names the
program in printed commands, ``embeddings`` computes h of the images in a folder, and ``results`` prints and writes an
evaluation.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.app.embeddings import (
        Gallery as Gallery,
        Reading as Reading,
        features as features,
        open_gallery as open_gallery,
    )
    from simclr_lightning.app.results import show_results as show_results, write_results as write_results

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
