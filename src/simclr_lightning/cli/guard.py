"""Run a command: signals, closed pipes and errors become a short message and an exit code.

The first Ctrl-C or SIGTERM ends a command at the next call of `simclr_lightning.stopping.check`: the loops over images,
batches, fits and pictures have one. A command that reaches none within `PATIENCE` seconds is ended all the same, and so
is a command that gets a second signal; unfinished files are then removed without its help.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from simclr_lightning.app.errors import describe
from simclr_lightning.stopping import STOP, Stopped

INTERRUPTED = 130
BROKEN_PIPE = 141


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
    with STOP.listening():
        STOP.last = _report_stop
        return _guarded(function, debug=debug, log=log)


def _guarded(function: Callable[[], int], *, debug: bool, log: Callable[[], Path | None]) -> int:
    try:
        STOP.check()
        code = function()
        _flush()
        return code
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich met it, and leaves with 1
            return BROKEN_PIPE
        raise
    except KeyboardInterrupt:
        _report_stop(signal.SIGINT)
        return INTERRUPTED
    except Stopped as stop:
        STOP.do_last(stop.signum)
        return 128 + stop.signum
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if signum := STOP.pending():  # an error after a signal comes from a process that the signal reached too
            STOP.do_last(signum)
            return 128 + signum
        if debug:
            traceback.print_exc()
        message, code = describe(error, log=log(), debug=debug)
        with contextlib.suppress(OSError):
            _flush()
        print(f"error: {message}", file=sys.stderr)
        return code


def guard_command(command: Callable[[Sequence[str]], int], argv: Sequence[str], *, usage: str | None = None) -> int:
    """`guard` a command that takes no configuration; ``debug=true`` among its arguments shows tracebacks.

    Args:
        command: takes the other arguments, returns its own exit code.
        argv: the arguments.
        usage: printed for --help; None: the command answers it.
    """
    if usage is not None and argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    rest = [argument for argument in argv if argument != "debug=true"]
    return guard(lambda: command(rest), debug=len(rest) < len(argv))


def _report_stop(signum: int) -> None:
    print("\ninterrupted" if signum == signal.SIGINT else "\nstopped by SIGTERM", file=sys.stderr, flush=True)


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
