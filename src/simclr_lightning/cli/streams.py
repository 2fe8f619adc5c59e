"""Prepare stdin, stdout and stderr: streams that the caller closed, readers that go away, names in any encoding."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Final

_GONE: Final = (errno.EPIPE, errno.EIO)  # the reader of a pipe, and a terminal


def open_closed() -> None:
    """Open what the caller closed (``<&-``, ``>&-``, ``2>&-``) on the null device.

    Otherwise ``sys.stdout`` is None, and the next file that is opened becomes file descriptor 1, into which any library
    in C prints.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # for child processes too
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open


def accept_any_name() -> None:
    """Print the letters that the encoding of stdout lacks as escapes: file names may hold any."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def outlive_readers() -> None:
    """Let stdout and stderr drop what they print when nobody reads any more: a run goes on to its end."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and _number(stream) == number:
            setattr(sys, name, _dropping(stream, number))


class _Dropping(io.FileIO):
    """A file that is written to as long as somebody reads it; from then on it is the null device."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return memoryview(data).nbytes


def _dropping(stream: io.TextIOWrapper, number: int) -> io.TextIOWrapper:
    stream.flush()
    raw = _Dropping(number, "w", closefd=False)
    unbuffered = stream.write_through  # python -u
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )


def _number(stream: io.TextIOWrapper) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream of a notebook or a test
        return -1
