"""The program in forked children, so that a kill costs a restart and no import, and the small run of all faults."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from _images import squares
from simclr_lightning.cli import (
    main as simclr,
    train,  # noqa: F401  (the parent imports what its children need)
)

SMALL = (  # a run of seconds: small network, few images
    "data=array",
    "model.encoder.width=0.125",
    "data.batch_size=16",
    "views.size=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
)
CRASHED = 70  # the exit code of a child that an exception ended
LONGEST = 120  # seconds after which a child counts as hanging
Failures = Iterator[str]


class Child:
    """A forked process that runs ``work`` and writes stdout and stderr to the file ``output``."""

    def __init__(self, work: Callable[[], int | None], output: Path) -> None:
        self.output = output
        self.pid = os.fork()
        if self.pid == 0:
            code = CRASHED
            try:
                os.setpgid(0, 0)
                handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
                code = int(work() or 0)
                sys.stdout.flush()
                sys.stderr.flush()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code & 255)
        with contextlib.suppress(OSError):  # the child may have done it already
            os.setpgid(self.pid, self.pid)

    def kill(self, after: float) -> bool:
        """Kill the process group after so many seconds; return whether the child was still running."""
        end = time.monotonic() + after
        while time.monotonic() < end:
            if self._ended():
                return False
            time.sleep(min(0.002, after))
        self._kill()
        return True

    def code(self) -> int | None:
        """Wait for the exit code; kill the child after LONGEST seconds and return None."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            if self._ended():
                return self._code
            time.sleep(0.005)
        self._kill()
        return None

    def refused(self) -> bool:
        """Wait; return whether the program ended by itself with an error message of its own, not with a traceback."""
        return self.code() not in (0, None, CRASHED)

    def message(self) -> str:
        """Return the end of the output."""
        return self.output.read_text()[-300:]

    def _kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._code = os.waitstatus_to_exitcode(status)
        return bool(pid)


def program(*words: object) -> Callable[[], int]:
    """Return a function that runs ``simclr OVERRIDES``."""
    return lambda: simclr([str(word) for word in words])


def array_file(folder: Path) -> Path:
    """Write images.npz with 64 training and 24 test images of 3 classes."""
    images, labels = squares(88)
    path = folder / "images.npz"
    np.savez(path, train_images=images[:64], train_labels=labels[:64], test_images=images[64:], test_labels=labels[64:])
    return path
