"""Turn an exception into a message of at most five lines and an exit code.

`simclr_lightning.cli.guard` prints the message, and with ``debug=true`` the traceback too.
"""

from __future__ import annotations

import errno
import re
import traceback
from pathlib import Path

from simclr_lightning import checkpoint
from simclr_lightning.run_folder import typed
from simclr_lightning.text import first_line

LINES = 5
CONFIGURATION = 2

_TOO_LARGE = "above data.dataset.max_pixels="  # a key of training runs
_PACKAGE = __name__.partition(".")[0]
_LAST = "ckpt_path=last"
_RESUME = re.compile(rf"resume with {_LAST}( force=true)?")
_GOES_ON = f" (a run goes on: {_LAST})"
_LAST_ERROR_LINE = re.compile(r"^[\w.]+: ", re.MULTILINE)


class UserError(Exception):
    """A mistake that the user can fix.

    Args:
        message: at most five lines: the cause, the file or configuration key, and the fix.
        code: the exit code; 2 means a mistake in the configuration.
    """

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def mistake(message: str) -> UserError:
    """Return a `UserError` about the configuration, with exit code 2."""
    return UserError(message, code=CONFIGURATION)


def describe(error: BaseException, *, log: Path | None = None, debug: bool = False) -> tuple[str, int]:
    """Return the message for an exception, of at most five lines, and the exit code.

    Args:
        error: the exception.
        log: a run's folder or a log file; the traceback of an unexpected exception is appended to it.
        debug: the traceback is printed anyway, so the message does not mention ``debug=true``.
    """
    cause = unwrapped(error)
    message = explain(cause)
    if message is None:
        message = _unexpected(cause, _append_traceback(error, log), debug=debug)
    if log is not None:
        message = name_run(message, log if log.is_dir() else log.parent)
    code = CONFIGURATION if _is_hydras(cause) else 1
    return _shortened(message), cause.code if isinstance(cause, UserError) else code


def explain(error: BaseException) -> str | None:
    """Return the message for an expected exception; None for an unexpected one.

    Expected are: errors raised by this package (a ValueError or FileNotFoundError raised in its code has a message for
    users), errors of the operating system that name a file, and the known errors listed here.
    """
    text = str(error)
    if isinstance(error, UserError):
        return text
    if out_of_memory(error):
        fix = "lower the batch size (for train: data.batch_size), or use a smaller model or views.size"
        return f"out of memory: {fix}\n{first_line(text)}"
    if isinstance(error, RuntimeError) and "cannot be converted to type float without overflow" in text:
        return "training has diverged, a value overflowed float32: lower the learning rate or optimizer.weight_decay"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}: free some space and repeat the command{_GOES_ON}"
    if isinstance(error, RuntimeError) and text.startswith("Could not determine home directory"):
        return "a path begins with ~, and there is no such home folder; write the path in full"
    if isinstance(error, RuntimeError) and "DataLoader worker" in text and "killed by signal" in text:
        fix = "lower data.num_workers or data.batch_size"
        return f"{first_line(text)}\nworkers are usually killed because memory runs out: {fix}"
    if _from_worker(text) and isinstance(error, ValueError):
        return text[[match.end() for match in _LAST_ERROR_LINE.finditer(text)][-1] :].strip()
    if isinstance(error, ValueError | FileNotFoundError) and _is_ours(error):
        return text
    if _is_hydras(error):
        return first_line(text)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename2 or error.filename}: {error.strerror}"  # filename2: the new name in a renaming
    return None


def name_run(message: str, run: Path) -> str:
    """Return a message with the run's folder for ``ckpt_path=last``, which finds runs in the default folder only.

    A run without a checkpoint cannot resume: its message tells the user to start again.
    """
    if _LAST in message and checkpoint.newest(run) is None:
        return _RESUME.sub("start again", message).replace(_GOES_ON, "")
    return message.replace(_LAST, f"ckpt_path={typed(run)}")


def without_data_keys(message: str) -> str:
    """Return a message about an image without the keys of ``data.dataset``, for commands that do not take them."""
    message = re.sub(r"set data\.dataset\.full_scale [^;]*, or (?=save)", "", message)
    message = re.sub(r", or leave such \w+ out with data\.dataset\.on_corrupt=skip", "", message)
    if _TOO_LARGE not in message:
        return message
    message = message.replace(_TOO_LARGE, "above the limit of ").partition("; ")[0]
    return (
        f"{message}; make the file smaller, or take a packed copy of all: simclr pack IMAGES OUT max_pixels=178956970"
    )


def as_options(message: str, *, skips: bool = True) -> str:
    """Return a message about an image with the options of ``simclr embed`` and ``simclr search`` for keys.

    Args:
        message: of an `ImageError`.
        skips: the command can leave this image out; False for a query.

    >>> as_options("a.jpg: above data.dataset.max_pixels=100; or data.dataset.on_corrupt=skip")
    'a.jpg: above --max-pixels 100; or --on-corrupt skip'
    """

    def option(found: re.Match[str]) -> str:
        return "--" + found[1].replace("_", "-") + (" " if found[2] else "")

    if not skips:
        message = re.sub(r", or leave such \w+ out with data\.dataset\.on_corrupt=skip", "", message)
    return re.sub(r"data\.dataset\.(on_corrupt|max_pixels|full_scale)(=?)", option, message)


def out_of_memory(error: BaseException) -> bool:
    """Return whether the host or the device ran out of memory; torch raises RuntimeError for both."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def unwrapped(error: BaseException) -> BaseException:
    """Return the exception that a target raised, if Hydra wrapped it in an InstantiationException."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_ours(error: BaseException) -> bool:
    """Return whether this package raised the error: a type of this package, or a plain type from a frame of it."""
    if type(error).__module__.partition(".")[0] == _PACKAGE:
        return True
    if type(error) not in (ValueError, FileNotFoundError) or getattr(error, "errno", None):
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__")).partition(".")[0] == _PACKAGE


def _is_hydras(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("hydra", "omegaconf")


def _from_worker(text: str) -> bool:
    return text.startswith("Caught ") and "in DataLoader worker process" in text.partition("\n")[0]


def _unexpected(error: BaseException, log: Path | None, *, debug: bool) -> str:
    line = f"unexpected {type(error).__name__}: {first_line(str(error))}"
    if debug:
        return line
    return line + (f"\nthe traceback is in {log}" if log else "\nthe traceback: add debug=true")


def _append_traceback(error: BaseException, where: Path | None) -> Path | None:
    """Append the error's traceback to the log; return the log, None when it cannot be written."""
    if where is None:
        return None
    log = where / "train.log" if where.is_dir() else where
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return log


def _shortened(message: str) -> str:
    lines = [line.rstrip() for line in message.strip().splitlines() if line.strip()]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "..."]
    return "\n".join(lines) or "no reason was given; add debug=true"
