"""Run a command: signals, closed pipes and errors become a short message and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from simclr_lightning.app.errors import describe

INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143

_DEFAULT: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_received: list[int] = []  # signals of this process's command


class Terminated(BaseException):
    """SIGTERM came: what is under way is left as Ctrl-C leaves it, and temporary files are removed."""


def _nowhere() -> Path | None:
    return None


def guard(function: Callable[[], int], *, debug: bool = False, log: Callable[[], Path | None] = _nowhere) -> int:
    """Run a command and return its exit code; whatever it raises becomes a short message on stderr.

    Args:
        function: the command, which returns its own exit code.
        debug: print the traceback too.
        log: returns the run's folder (or a log file) once it is known; an unexpected error's traceback is
            appended to its train.log.

    Returns:
        The command's own code, ``UserError.code``, 130 after Ctrl-C, 143 after SIGTERM, 141 when the reader of a
        pipe is gone, else 1.
    """
    try:
        with _stoppable():
            code = function()
            _flush()
            return code
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich met it, and leaves with 1
            return BROKEN_PIPE
        raise
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        print("\nstopped by SIGTERM", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if _received:  # inside compiled code: it made an error of its own of what was raised there
            print(f"\nstopped by {signal.Signals(_received[0]).name}", file=sys.stderr)
            return 128 + _received[0]
        if debug:
            traceback.print_exc()
        message, code = describe(error, log=log(), debug=debug)
        with contextlib.suppress(OSError):
            _flush()
        print(f"error: {message}", file=sys.stderr)
        return code


def guard_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """`guard` a command that takes no configuration; ``debug=true`` among its arguments shows tracebacks.

    Args:
        command: takes the other arguments, returns its own exit code.
        argv: the arguments.
    """
    rest = [argument for argument in argv if argument != "debug=true"]
    return guard(lambda: command(rest), debug=len(rest) < len(argv))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise inside and are noted, where nobody else has taken them."""

    def stop(signum: int, frame: FrameType | None) -> None:
        _received.append(signum)
        signal.signal(signum, _DEFAULT[signum])  # a second one ends what tidies up
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [signum for signum, usual in _DEFAULT.items() if signal.getsignal(signum) is usual]
    if taken:  # by the outermost of those that are nested
        _received.clear()
    for signum in taken:
        signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum in taken:
            signal.signal(signum, _DEFAULT[signum])


def _flush() -> None:
    """Write what is buffered: at its end the interpreter would speak of a full disk or a closed pipe in its own way."""
    if sys.stdout is None:  # closed by the caller
        return
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()
        raise


def _silence_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter complains of the pipe when it exits."""
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
    except (OSError, ValueError):
        return
