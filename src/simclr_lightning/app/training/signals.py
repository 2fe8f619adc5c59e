"""SIGTERM and Ctrl-C: a step ends, the state is saved, and the run says how to go on."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType

import lightning as L

from simclr_lightning.callbacks import Stopped


@dataclass
class StopSignals:
    """SIGTERM and SIGINT: noted while steps are made, so that the step ends; raised at once at any other time."""

    training: bool = False
    received: int = 0

    def install(self) -> None:
        """Take both signals."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._handle)

    def pending(self) -> int:
        """The signal that asks to stop, or 0."""
        return self.received

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = self.received
        self.received = signum
        if again or not self.training:
            raise Stopped(signum)


class KeepSignals(L.Callback):
    """Puts our handlers back after Lightning has set its own, for the time of the steps.

    Lightning's SIGTERM handler talks to the other ranks from inside the handler, and in a group its loop reads a tensor
    from the device at every step to learn of a SIGTERM; `Health` does both on the host. Comes last, so that everything
    is saved when training ends.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        loop = trainer.fit_loop.epoch_loop
        assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning has renamed it"
        loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self.signals.install()
        self.signals.training = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on a signal stops at once, one that came during the last step too: everything is saved."""
        self.signals.training = False
        if self.signals.received:
            raise Stopped(self.signals.received)
