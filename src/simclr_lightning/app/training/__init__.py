"""One process of a run, in the order in which it happens.

``devices`` and ``performance`` decide where and how it computes, ``build`` makes its objects, ``batchnorm``,
``numbers``, ``signals`` and ``stock`` (Lightning's own classes) are parts of the ``trainer``, ``preflight`` measures
what limits the speed (``dry_run`` prints that as a table), ``process`` trains, ``finish`` scores, draws and exports,
``messages`` and ``weights`` format what a run prints at its start and end.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.app.training.build import (
        check_encoders as check_encoders,
        check_images as check_images,
        make_data as make_data,
    )
    from simclr_lightning.app.training.dry_run import print_dry_run as print_dry_run
    from simclr_lightning.app.training.finish import blank_summary as blank_summary
    from simclr_lightning.app.training.messages import packages_of as packages_of
    from simclr_lightning.app.training.process import record_stop as record_stop, run_process as run_process
    from simclr_lightning.app.training.trainer import quiet_libraries as quiet_libraries

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
