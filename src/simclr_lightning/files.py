"""Files that appear whole or not at all: filled beside their place, synced to disk, moved over it."""

import contextlib
import os
import shutil
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
    fresh = _fresh(path.parent, path.name)
    try:
        yield fresh
        sync(fresh)
        fresh.replace(path)
        with contextlib.suppress(OSError):  # not every file system syncs a folder, and the file is in its place
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


@contextmanager
def together(folder: Path, name: str) -> Iterator[Path]:
    """Give an empty folder for the body to fill; where the body ends without an error, its files appear in ``folder``.

    Otherwise nothing new is left there, and no folder that was not there. What processes that were killed left under
    the same name is removed.

    Args:
        folder: made if it is not there.
        name: of the files together, for the folder that is filled.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    fresh = _fresh(_nearest(folder), name)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    new: list[Path] = []
    try:
        shutil.rmtree(fresh, ignore_errors=True)  # of a process of this number that was killed
        fresh.mkdir()
        yield fresh
        filled = sorted(fresh.iterdir())
        for path in filled:
            sync(path)
        folder.mkdir(parents=True, exist_ok=True)
        for path in filled:
            place = folder / path.name
            if not os.path.lexists(place):
                new.append(place)
            path.replace(place)
        with contextlib.suppress(OSError):  # as above
            sync(folder)
    except BaseException:
        for place in new:
            with contextlib.suppress(OSError):
                place.unlink()
        for place in made:
            with contextlib.suppress(OSError):  # it was not made yet, or others use it
                place.rmdir()
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with whole(path) as fresh:
        fresh.write_bytes(text.encode("utf-8", "surrogateescape"))  # names of files may be no text


def check_writable(path: Path) -> None:
    """Try whether a file or folder can be written, before work whose results go there; nothing is left or made.

    Raises:
        OSError: it cannot: neither in the folder nor in the nearest one above it that is there.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest(path)):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def in_the_way(path: Path) -> str | None:
    """What is where a folder is to be: "a file" or "a link that leads nowhere"; None for a folder and for nothing."""
    if path.is_dir() or not os.path.lexists(path):
        return None
    return "a file" if path.exists() else "a link that leads nowhere"


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _fresh(folder: Path, name: str) -> Path:
    """What this process fills for a name in a folder; what processes that were killed left of it is removed."""
    for left in folder.glob(".*.tmp"):
        if left.name.startswith(f".{name}.") and not _is_alive(left.name.split(".")[-2]):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return folder / f".{name}.{os.getpid()}.tmp"


def _is_alive(pid: str) -> bool:
    """Whether a process of this number runs; what is no number is left alone."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError, OverflowError):
        return True
    return True
