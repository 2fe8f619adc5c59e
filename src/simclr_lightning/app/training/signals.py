"""Keep the signal handlers of `STOP` during training, so that a signal ends a run after a whole step is saved."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from simclr_lightning.stopping import PATIENCE, STOP


class KeepSignals(L.Callback):
    """Replace Lightning's signal handlers by those of `STOP`, so that a signal waits for the end of a step.

    Lightning's SIGTERM handler sends to the other ranks from inside the handler, and in a group its loop reads a tensor
    from the device at every step to find a SIGTERM. `Health` exchanges the signals on the CPU, between steps. This
    callback must be the last one: the others save before it ends the training.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Set the handlers of `STOP` again whenever Lightning has set its own."""
        loop, connector = trainer.fit_loop.epoch_loop, trainer._signal_connector
        assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has renamed it"
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        register = connector.register_signal_handlers

        def register_and_put_back() -> None:
            register()
            STOP.install()

        connector.register_signal_handlers = register_and_put_back  # type: ignore[method-assign]

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        """Let signals wait for the end of a step: after the first step, there is something to save."""
        STOP.wait_for_check(math.inf)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop on a signal that came during the last step: everything is saved."""
        STOP.wait_for_check(PATIENCE)
        STOP.check()
