"""The scan of a large folder, stored between runs in the user's cache folder.

A stored scan is used when every folder that it lists still has the `Stamp` it had: adding, removing or renaming an
entry changes the stamp of its folder. Rewriting a file in place does not. So sizes from a stored scan are those of the
time of the scan, and nothing that must be exact uses them.

The file is an .npz of plain arrays, with a checksum for each. It may be deleted at any time.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simclr_lightning.data.disk.scan import Scan, stamp

VERSION = 2
STORED_FROM = 20_000  # images; a smaller folder is read in a fraction of a second
# A folder that changed this shortly before it was read may change again within the same tick of a coarse clock (2 s on
# some file systems) without a change of its stamp. Such a scan is not stored.
SETTLED = 3_000_000_000  # nanoseconds

Bytes = NDArray[np.uint8]


def cache_file(root: str) -> Path:
    """Return the file for the scan of `root`, below $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    return Path(base) / "simclr-lightning" / "folders" / f"{name}.npz"


def read(root: str) -> Scan | None:
    """Return the stored scan of `root`; None when there is none, or it is damaged or out of date."""
    try:
        with cache_file(root).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if int(arrays["version"]) != VERSION or _unpacked(arrays["root"]) != [root]:
                return None
            folders, stamps = _unpacked(arrays["folders"]), arrays["stamps"]
            if len(folders) != len(stamps) or any(
                stamp(f"{root}/{folder}") != tuple(before)
                for folder, before in zip(folders, stamps.tolist(), strict=True)
            ):
                return None
            texts = [_unpacked(arrays[key]) for key in ("names", "others", "links", "repeated")]
            kinds, examples = _unpacked(arrays["left_out"]), _unpacked(arrays["left_out_examples"])
            sizes, counts = arrays["sizes"], arrays["left_out_counts"].tolist()
            left_out = dict(zip(kinds, zip(counts, examples, strict=True), strict=True))
    # There is no file, or it is damaged, for which numpy and zipfile raise errors of almost any class.
    except Exception:
        return None
    names, others, links, repeated = texts
    if len(names) != len(sizes):
        return None
    return Scan(folders, stamps, names, sizes, others, links, repeated, left_out)


def write(root: str, scan: Scan, *, started: int) -> None:
    """Store the scan of a large folder; a cache folder that cannot be written is not an error.

    Args:
        root: the folder, links resolved.
        scan: the scan.
        started: when it began, in nanoseconds since 1970.
    """
    if len(scan.names) < STORED_FROM or int(scan.stamps[:, :2].max()) > started - SETTLED:
        return
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
        file = cache_file(root)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.stem}.{os.getpid()}.npz")
        try:
            np.savez(
                fresh,
                version=np.array(VERSION),
                root=_packed([root]),
                folders=_packed(scan.folders),
                stamps=scan.stamps,
                names=_packed(scan.names),
                sizes=scan.sizes,
                others=_packed(scan.others),
                links=_packed(scan.links),
                repeated=_packed(scan.repeated),
                left_out=_packed(scan.left_out),
                left_out_counts=np.array([count for count, _ in scan.left_out.values()], dtype=np.int64),
                left_out_examples=_packed(example for _, example in scan.left_out.values()),
            )
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)


def now() -> int:
    """Return the time in nanoseconds since 1970, by the clock that folders' stamps are compared with."""
    return time.time_ns()


def _packed(names: Iterable[str]) -> Bytes:
    """Texts as bytes, each followed by a zero byte, which no file name has."""
    return np.frombuffer(os.fsencode("".join(f"{name}\0" for name in names)), dtype=np.uint8)


def _unpacked(data: Bytes) -> list[str]:
    return os.fsdecode(data.tobytes()).split("\0")[:-1]
