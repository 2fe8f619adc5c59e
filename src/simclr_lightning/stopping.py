"""Stop the program on SIGINT or SIGTERM between two pieces of work, never by an exception inside one.

A handler only notes the signal. The program calls `check` between batches, fits, pictures and files, which raises
`Stopped` there; training reads `STOP.pending` after each step. Imports, t-SNE and compilation have no such point. So a
thread, which a signal wakes even while compiled code runs, ends the process ``patience`` seconds after the signal. A
second signal ends it at once. In both cases, `STOP.last` is called first (a run writes summary.json), and unfinished
files are removed. The exit code is 128 + the number of the signal in every case.

Nothing is installed on import, so in a notebook `check` does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from simclr_lightning import files

PATIENCE = 4.0  # seconds that work may take to reach a call of `check`
SECONDS_FOR_LAST = 4.0  # that writing the summary may take then
APART = 0.5  # seconds below which two signals are one: launchers send theirs to a process and to its group
_DEFAULT: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_LOOK = 0.1  # seconds between two looks at the clock


class Stopped(Exception):
    """A signal stopped the program.

    Attributes:
        signum: the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


def _nothing(signum: int) -> None:
    """Do nothing on a signal."""


class StopSignals:
    """SIGINT and SIGTERM of this process; `STOP` is the only object.

    Attributes:
        received: the numbers of the signals since `listening` began, those less than `APART` seconds apart once.
        last: called once with the first signal's number when the program ends by a signal, by whichever thread ends it.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.last: Callable[[int], None] = _nothing
        self._patience, self._since, self._again = math.inf, 0.0, True
        self._handled_at = -math.inf
        self._first: tuple[float, int] | None = None  # as the thread saw it, which is before the handler runs
        self._taken: list[signal.Signals] = []
        self._pipe: tuple[int, int] | None = None
        self._lock, self._ending = threading.RLock(), threading.Lock()
        self._masks = threading.local()
        os.register_at_fork(before=self._block, after_in_child=self._forget, after_in_parent=self._unblock)

    def pending(self) -> int:
        """Return the number of the first signal, or 0."""
        if self.received:
            return self.received[0]
        return self._first[1] if self._first and self._taken else 0

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if signum := self.pending():
            raise Stopped(signum)

    def wait_for_check(self, seconds: float) -> None:
        """Set how long after a signal, and after this call, the process may go on; infinity during training steps."""
        self._patience, self._since = seconds, time.monotonic()

    def do_last(self, signum: int) -> None:
        """Call `last`, unless it was called before."""
        with self._lock:
            last, self.last = self.last, _nothing
            last(signum)

    @contextlib.contextmanager
    def listening(self, *, patience: float = PATIENCE, again: bool = True) -> Iterator[None]:
        """Note the signals in this block; if nested, only the settings change.

        A signal that is not at its default, for example ignored, stays as it is. Outside the main thread nothing is
        noted.

        Args:
            patience: seconds after a signal until the process is ended; infinity leaves the end to the block.
            again: whether a second signal ends the process at once.
        """
        before = self._patience, self._again, self.last
        outermost = not self._taken and threading.current_thread() is threading.main_thread()
        self.wait_for_check(patience)
        self._again = again
        if outermost:
            self._take()
        try:
            yield
        finally:
            if outermost:
                self._give_back()
            self.wait_for_check(before[0])
            self._again, self.last = before[1:]

    def listen_to_the_end(self, *, patience: float = PATIENCE) -> None:
        """Note the signals until the process has ended, the interpreter's own end included."""
        if not self._taken:
            self._take()
            self.wait_for_check(patience)
            atexit.register(self._ignore)  # the first to be registered is the last to run

    def install(self) -> None:
        """Set the handlers of `listening` again, after a library has set its own."""
        for signum in self._taken:
            signal.signal(signum, self._handle)

    def _take(self) -> None:
        if self._pipe is None:
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True, name="stop signals").start()
        self._handled_at = -math.inf
        self._taken = [signum for signum, usual in _DEFAULT.items() if signal.getsignal(signum) is usual]
        self.install()
        if self._taken:
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)

    def _give_back(self) -> None:
        if self._taken:
            signal.set_wakeup_fd(-1)
        for signum in self._taken:
            signal.signal(signum, _DEFAULT[signum])
        with self._ending:
            self._taken, self._first, self.received = [], None, []

    def _ignore(self) -> None:
        """Ignore the signals: the interpreter resets handlers before its last steps, which then take a second."""
        for signum in self._taken:
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._handled_at > APART:
            self.received.append(signum)
        self._handled_at = now

    def _watch(self, pipe: int) -> None:
        """End the process when it is time; runs in a separate thread."""
        while True:
            first = self._first
            ready, _, _ = select.select([pipe], [], [], _LOOK if first else None)
            now = time.monotonic()
            signums = [number for number in os.read(pipe, 256) if number in self._taken] if ready else []
            if first is None:
                with self._ending:
                    if signums and self._taken:
                        self._first = now, signums[0]
                continue
            second = bool(signums) and self._again and now - first[0] > APART
            late = now - max(first[0], self._since) > self._patience
            if self._first is first and (second or late):
                self._end(first[1])

    def _end(self, signum: int) -> None:
        """End the process without a return to the main thread, which may be in the middle of anything."""
        last = threading.Thread(target=self._do_last_quietly, args=(signum,), daemon=True)
        last.start()  # a separate thread, since it may wait for a lock that the main thread holds
        last.join(SECONDS_FOR_LAST)
        files.undo_unfinished()
        with contextlib.suppress(OSError):
            if os.isatty(2):
                os.write(2, b"\x1b[?25h\n")  # a progress bar has hidden the cursor
        os._exit(128 + signum)

    def _do_last_quietly(self, signum: int) -> None:
        with contextlib.suppress(Exception):
            self.do_last(signum)
            sys.stdout.flush()
            sys.stderr.flush()

    def _block(self) -> None:
        """Let signals wait while a thread forks: the child would write them to the pipe, which it shares."""
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEFAULT)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _forget(self) -> None:
        """Give a forked child the default handlers: a signal to a child, such as a worker, is none to its parent."""
        self._lock, self._ending = threading.RLock(), threading.Lock()
        with contextlib.suppress(ValueError):
            self._give_back()
        self._pipe = None
        self._unblock()


STOP = StopSignals()
check = STOP.check
