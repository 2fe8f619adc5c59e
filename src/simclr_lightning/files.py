"""Write files atomically: fill a temporary file next to the target, sync it to disk, and rename it to the target."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_undos: list[Callable[[], object]] = []


@contextmanager
def undone_if_ended(undo: Callable[[], object]) -> Iterator[None]:
    """Call ``undo`` if the process ends by a signal inside the block without an exception (`stopping`)."""
    _undos.append(undo)
    try:
        yield
    finally:
        _undos.remove(undo)


def undo_unfinished() -> None:
    """Remove what this process is writing and has not finished, the newest first."""
    for undo in reversed(_undos):
        with contextlib.suppress(OSError):
            undo()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to fill; rename it to ``path`` if the block ends without an error.

    Temporary files that killed writers of the same file left behind are removed. Several processes may write the file
    at once; the last one wins.

    Args:
        path: the file to write, in an existing folder.

    Raises:
        OSError: the folder is not writable, or the disk is full; ``path`` is then unchanged.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole(folder / "a.txt") as fresh:
    ...     _ = fresh.write_text("done")
    >>> [path.name for path in folder.iterdir()]
    ['a.txt']
    """
    fresh = _fresh(path.parent, path.name)
    try:
        with undone_if_ended(fresh.unlink):
            yield fresh
            sync(fresh)
            fresh.replace(path)
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file is complete anyway
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


@contextmanager
def together(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; move its files to ``folder`` if the block ends without an error.

    After an error, no new file and no new folder is left. Temporary folders that killed processes left behind under the
    same name are removed.

    Args:
        folder: the target folder; created if it does not exist.
        name: a name for this group of files, which becomes part of the name of the temporary folder.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    fresh = _fresh(_nearest(folder), name)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    new: list[Path] = []

    def undo() -> None:
        for place in new:
            with contextlib.suppress(OSError):
                place.unlink()
        shutil.rmtree(fresh, ignore_errors=True)
        for place in made:
            with contextlib.suppress(OSError):  # it was not created yet, or holds files of others
                place.rmdir()

    try:
        with undone_if_ended(undo):
            shutil.rmtree(fresh, ignore_errors=True)  # left by a killed process with the same id
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
        with contextlib.suppress(OSError):  # see `whole`
            sync(folder)
    except BaseException:
        undo()
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text to a file in UTF-8, completely or not at all."""
    with whole(path) as fresh:
        fresh.write_bytes(text.encode("utf-8", "surrogateescape"))  # file names may hold bytes that are not UTF-8


def check_writable(path: Path) -> None:
    """Check that a file or folder can be created, before the work that produces its content; creates nothing.

    Args:
        path: the file or folder; it need not exist.

    Raises:
        OSError: the folder, or the nearest existing folder above it, is not writable, or there is a file in its place.
    """
    if found := next((place for place in path.absolute().parents if in_the_way(place)), None):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(found))
    try:
        with tempfile.TemporaryFile(dir=_nearest(path)):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def in_the_way(path: Path) -> str | None:
    """Return what prevents a folder at this path, "a file" or "a link that leads nowhere"; None if nothing does."""
    if path.is_dir() or not os.path.lexists(path):
        return None
    return "a file" if path.exists() else "a link that leads nowhere"


def sync(path: Path) -> None:
    """Write the content of a file, or the entries of a folder, to the disk, and wait for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _nearest(folder: Path) -> Path:
    """Return the folder itself, or the nearest existing folder above it."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _fresh(folder: Path, name: str) -> Path:
    """Return the temporary path of this process for a name in a folder; remove those that killed processes left."""
    for left in folder.glob(".*.tmp"):
        if left.name.startswith(f".{name}.") and not _is_alive(left.name.split(".")[-2]):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    return folder / f".{name}.{os.getpid()}.tmp"


def _is_alive(pid: str) -> bool:
    """Return whether a process with this id runs; True for a text that is not a number."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError, OverflowError):
        return True
    return True
