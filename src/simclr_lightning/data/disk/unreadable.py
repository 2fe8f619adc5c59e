"""Files that cannot be read as images: found at the start of a run where that is cheap, then refused or left out."""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from simclr_lightning import machine
from simclr_lightning.data.disk.decode import PILLOW_LIMIT, ImageError, check_header, decode, quiet
from simclr_lightning.data.disk.listing import Listing
from simclr_lightning.data.disk.progress import counted

# Files whose heads are read at the start. More would make a set of a million files wait for minutes; a bad file among
# the others is found, and named, when it is loaded.
CHECKED = 10_000
HANDFUL = 32  # files that a thread takes at a time
NAMED = 20  # skipped files named in the notes
MEND = "remove or replace it, or leave such files out with data.dataset.on_corrupt=skip"

OnCorrupt = Literal["fail", "skip"]
A = TypeVar("A")
T = TypeVar("T")


def check_policy(on_corrupt: str, max_skipped: int, max_pixels: int, full_scale: float | None = None) -> None:
    """Refuse wrong values of the options that every source of files has.

    Raises:
        ValueError: the message names the key.
    """
    if on_corrupt not in ("fail", "skip"):
        raise ValueError(f"data.dataset.on_corrupt={on_corrupt}: must be fail or skip")
    if max_skipped < 0:
        raise ValueError(f"data.dataset.max_skipped={max_skipped}: must be at least 0")
    if not 1 <= max_pixels <= PILLOW_LIMIT:
        raise ValueError(f"data.dataset.max_pixels={max_pixels}: must be from 1 to {PILLOW_LIMIT:,}")
    if full_scale is not None and not full_scale > 0:
        raise ValueError(f"data.dataset.full_scale={full_scale}: must be above 0")


def spread(count: int) -> range:
    """Return up to `CHECKED` of ``count`` indices, at even distances."""
    return range(0, count, -(-count // CHECKED) or 1)


def in_threads(function: Callable[[A], T], items: Sequence[A]) -> Generator[T, None, None]:
    """Call a function for each item in threads, and yield the results in order.

    Reading, decoding and encoding release Python's lock.
    """
    count = min(16, machine.cores())
    with ThreadPoolExecutor(count) as threads:
        # Only a few handfuls are in work at a time, so that an early end costs little.
        for start in range(0, len(items), 4 * count * HANDFUL):
            ends = range(start, min(len(items), start + 4 * count * HANDFUL), HANDFUL)
            handfuls = [items[at : at + HANDFUL] for at in ends]
            for results in threads.map(lambda handful: [function(item) for item in handful], handfuls):
                yield from results


def check_heads(listing: Listing, max_pixels: int) -> None:
    """Refuse files whose size or head shows that they cannot be read.

    Raises:
        ImageError: the message names the first of them.
    """
    empty = [index for index, size in enumerate(listing.sizes) if size == 0]
    chosen = sorted({*spread(len(listing.names)), *empty[:CHECKED]})
    paths = [listing.root / listing.names[index] for index in chosen]
    with quiet():
        errors = [e for e in in_threads(partial(_error, check_header, max_pixels), paths) if e is not None]
    if errors:
        more = f" ({len(errors):,} of {len(paths):,} files looked into cannot be read)" if len(errors) > 1 else ""
        raise ImageError(f"{errors[0]}{more}; {MEND}")


def undecodable(listing: Listing, max_skipped: int, max_pixels: int, full_scale: float | None = None) -> dict[str, str]:
    """Return name -> "path: reason" for every file that cannot be decoded.

    Raises:
        ImageError: there are more than `max_skipped`.
    """
    paths = [listing.root / name for name in listing.names]
    with (
        quiet(),
        closing(in_threads(partial(_error, partial(decode, full_scale=full_scale), max_pixels), paths)) as errors,
    ):
        return gathered(listing.names, errors, max_skipped, f"decoding {listing.root}")


def gathered(names: Sequence[str], errors: Iterable[str | None], max_skipped: int, what: str) -> dict[str, str]:
    """Return name -> error for the files that have an error, and show the progress.

    Raises:
        ImageError: there are more than `max_skipped`; the message shows the first three.
    """
    skipped: dict[str, str] = {}
    with counted(what, unit="images", total=len(names)) as report:
        for name, error in zip(names, errors, strict=True):
            report(1)
            if error is not None:
                skipped[name] = error
                if len(skipped) > max_skipped:
                    raise too_many(skipped.values(), max_skipped)
    return skipped


def too_many(errors: Iterable[str], max_skipped: int, *, key: str = "data.dataset.max_skipped") -> ImageError:
    """Return the error for more bad files than `max_skipped`; its message shows the first three."""
    first = "\n  ".join([*errors][:3])
    head = f"more than {key}={max_skipped} files cannot be read as images"
    return ImageError(f"{head}:\n  {first}\nrepair or remove them, or raise {key}")


def skip_notes(skipped: dict[str, str]) -> list[str]:
    """Return lines that count and list the files that were left out."""
    if not skipped:
        return []
    more = [f"... and {len(skipped) - NAMED:,} more"] if len(skipped) > NAMED else []
    head = f"{len(skipped):,} files cannot be read as images and are skipped:"
    return [head, *[*skipped.values()][:NAMED], *more]


def _error(function: Callable[[Path, int], object], max_pixels: int, path: Path) -> str | None:
    """The message of the `ImageError` that ``function`` raises for a file; None without an error."""
    try:
        function(path, max_pixels)
    except ImageError as error:
        return str(error)
    return None
