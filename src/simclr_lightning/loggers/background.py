"""Send metrics to a tracking server in a background thread, so that a server that is away never delays a step."""

from __future__ import annotations

import queue
import threading
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from simclr_lightning.text import first_line

SECONDS_TO_CLOSE = 9


class Background(Logger):
    """Pass each call to another logger in one background thread, in order; after the first error, log nothing more.

    Args:
        name: the name of the service, for messages.
        make: makes the logger; called in the thread, since it may connect to a server.
        results: logs the pictures at the end: called with the logger and the list of their paths.
        resumed: the service has the configuration of this run already.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Logger],
        *,
        results: Callable[[Any, Any], None],
        resumed: bool = False,
    ) -> None:
        super().__init__()
        self._resumed = resumed
        self._name, self._results = name, results
        self._calls: queue.Queue[Callable[[Logger], Any] | None] = queue.Queue()
        self.lost = False
        self._thread = threading.Thread(target=self._run, args=(make,), daemon=True)
        self._start()

    @rank_zero_only
    def _start(self) -> None:
        self._thread.start()

    @property
    def name(self) -> str:
        """Return the name of the service."""
        return self._name

    @property
    def version(self) -> str:
        """Return an empty string: the service chooses the id of the run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Send the configuration of a new run."""
        if self._resumed:
            return
        self._calls.put(lambda logger: logger.log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send one row of metrics."""
        row = dict(metrics)
        self._calls.put(lambda logger: logger.log_metrics(row, step))

    @rank_zero_only
    def close(self, pictures: list[Any]) -> None:
        """Send the pictures and end the run of the service, in at most `SECONDS_TO_CLOSE` seconds."""
        self._calls.put(lambda logger: self._results(logger, pictures))
        self._calls.put(lambda logger: logger.finalize("success"))
        self._calls.put(None)
        self._thread.join(SECONDS_TO_CLOSE)
        if self._thread.is_alive():
            print(f"{self._name} does not respond; metrics.csv has all metrics")

    def _run(self, make: Callable[[], Logger]) -> None:
        try:
            logger = make()
            while (call := self._calls.get()) is not None:
                call(logger)
        except Exception as error:  # no error of a client may stop the run
            self.lost = True
            print(f"{self._name} failed ({first_line(error)}); training continues without it")
