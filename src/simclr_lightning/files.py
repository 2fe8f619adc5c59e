"""Files that appear whole or not at all: filled beside their place, synced to disk, moved over it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` for the body to fill; where the body ends without an error, it becomes ``path``.

    What writers of the same file left that were killed is removed; several may write at once, and the last one wins.

    Args:
        path: the file, in a folder that is there.

    Raises:
        OSError: the folder cannot be written, or the disk is full; what was at ``path`` is as it was.
    """
    for left in path.parent.glob(".*.tmp"):
        if left.name.startswith(f".{path.name}.") and not _is_alive(left.suffixes[-2][1:]):
            left.unlink(missing_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        sync(fresh)
        fresh.replace(path)
        with contextlib.suppress(OSError):  # not every file system syncs a folder, and the file is in its place
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole(path) as fresh:
        fresh.write_bytes(text.encode("utf-8", "surrogateescape"))  # names of files may be no text


def check_writable(path: Path) -> None:
    """Try whether a file or folder can be written, before work whose results go there; nothing is left or made.

    Raises:
        OSError: it cannot: neither in the folder nor in the nearest one above it that is there.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: str) -> bool:
    """Whether a process of this number runs; what is no number is left alone."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError, OverflowError):
        return True
    return True
