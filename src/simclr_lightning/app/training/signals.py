"""Training under signals: a step ends, the state is saved, and Lightning's own handlers stay out."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from simclr_lightning.stopping import PATIENCE, STOP


class KeepSignals(L.Callback):
    """Let a signal wait for the end of a step, with the handlers of `STOP` in place of Lightning's.

    Lightning's SIGTERM handler sends to the other ranks from inside the handler, and in a group its loop reads a tensor
    from the device at every step to learn of a SIGTERM. `Health` exchanges the signals on the CPU, between steps. This
    callback comes last, so that everything is saved when training ends.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Put our handlers back whenever Lightning has set its own."""
        loop, connector = trainer.fit_loop.epoch_loop, trainer._signal_connector
        assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has renamed it"
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        register = connector.register_signal_handlers

        def register_and_put_back() -> None:
            register()
            STOP.install()

        connector.register_signal_handlers = register_and_put_back  # type: ignore[method-assign]

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        """After a first step there is something to save: from here on a signal waits for the end of a step."""
        STOP.wait_for_check(math.inf)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop on a signal that came during the last step: everything is saved."""
        STOP.wait_for_check(PATIENCE)
        STOP.check()
