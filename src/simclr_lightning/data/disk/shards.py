"""The files of a packed folder: shards and their index, written and read.

OUT/shard-000000.tar ...  plain tar files in WebDataset's convention: 000000000.jpg, and 000000000.json with its file
                          name, class and label; programs that stream such shards can read them
OUT/samples.npz           the place, the checksum and the name of each image
OUT/index.json            written last: the checksum of samples.npz, and facts for people

Legend: n images, k shards.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter, BytesIO
from pathlib import Path
from typing import Any, final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simclr_lightning import files

INDEX, SAMPLES = "index.json", "samples.npz"
SHARD_BYTES = 512 * 1024 * 1024
FORMAT, VERSION = "simclr-lightning packed images", 1


@dataclass(frozen=True)
class Index:
    """The place of each image of a packed folder.

    Attributes:
        names: n file names, relative to the folder that was packed, sorted by code point.
        shards: (n,) int64, the number of each image's shard.
        offsets: (n,) int64, the image's first byte in the shard.
        sizes: (n,) int64, the image's bytes.
        checksums: (n,) int64, CRC-32 of these bytes.
        shard_sizes: (k,) int64, bytes of each shard.
    """

    names: list[str]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: NDArray[np.int64]
    shard_sizes: NDArray[np.int64]


def shard_name(number: int) -> str:
    """Return the file name of a shard by its number."""
    return f"shard-{number:06d}.tar"


def is_packed(root: Path) -> bool:
    """Return whether a folder was written by `pack`, finished or not."""
    return (root / shard_name(0)).is_file()


def write_index(out: Path, index: Index, facts: dict[str, Any]) -> None:
    """Write samples.npz, and then index.json; each file is written whole or not at all.

    Args:
        out: the folder with the shards.
        index: the images in the shards.
        facts: more for index.json, for people to read; plain values.
    """
    names = np.frombuffer(os.fsencode("".join(f"{name}\0" for name in index.names)), dtype=np.uint8)
    buffer = BytesIO()
    np.savez(
        buffer,
        names=names,
        shards=index.shards,
        offsets=index.offsets,
        sizes=index.sizes,
        checksums=index.checksums,
        shard_sizes=index.shard_sizes,
    )
    samples = buffer.getvalue()
    with files.whole(out / SAMPLES) as fresh:
        fresh.write_bytes(samples)
    head = {"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(samples).hexdigest()}
    files.write_text(out / INDEX, json.dumps({**head, **facts}, indent=2) + "\n")


def read_index(root: Path) -> Index:
    """Return the index of a packed folder, after checking its checksum and the sizes of the shards.

    Raises:
        ValueError: the folder is not a packed one, not finished or damaged, or a shard is missing or cut short; one
            line that names the file and what to do.
    """
    samples = _samples(root)
    with np.load(BytesIO(samples), allow_pickle=False) as arrays:
        names = os.fsdecode(arrays["names"].tobytes()).split("\0")[:-1]
        keys = ("shards", "offsets", "sizes", "checksums", "shard_sizes")
        index = Index(names, *(arrays[key] for key in keys))
    for number, size in enumerate(index.shard_sizes.tolist()):
        shard = root / shard_name(number)
        there = shard.stat().st_size if shard.is_file() else None
        if there != size:
            found = "is missing" if there is None else f"has {there:,} bytes, not {size:,}"
            raise ValueError(f"{shard}: {found}; copy the packed folder again, or pack the images again")
    return index


def _samples(root: Path) -> bytes:
    """The bytes of samples.npz, after checking the checksum that index.json has for them."""
    if not (root / INDEX).is_file():
        if is_packed(root):
            raise ValueError(
                f"{root}: the packing was not finished ({INDEX} is missing); remove the folder and pack again"
            )
        raise ValueError(
            f"data.path={root}: is not a packed folder ({INDEX} is missing); make one with `simclr pack IMAGES OUT`, "
            "or read images as they are with data=folder"
        )
    try:
        head = json.loads((root / INDEX).read_bytes())
        known = head["format"] == FORMAT
        version, checksum = head["version"], head["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{root / INDEX}: damaged, or not of a packed folder; pack the images again") from None
    if not known or version != VERSION:
        raise ValueError(
            f"{root / INDEX}: another format than {FORMAT!r} {VERSION}; pack the images again with this version"
        )
    samples = (root / SAMPLES).read_bytes() if (root / SAMPLES).is_file() else b""
    if hashlib.sha256(samples).hexdigest() != checksum:
        raise ValueError(f"{root / SAMPLES}: damaged (its checksum differs); copy it again, or pack the images again")
    return samples


@final
class ShardWriter:
    """Writes images into tar files, and begins the next file when one is full; ``with`` closes the last one."""

    def __init__(self, out: Path) -> None:
        self.written = 0  # bytes in all shards, the open one too
        self._out = out
        self._names: list[str] = []
        self._places: list[tuple[int, int, int, int]] = []
        self._sizes: list[int] = []
        self._file: BufferedWriter | None = None
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._end()
        elif self._file is not None:
            with suppress(OSError):  # the buffered bytes may not fit on the disk
                self._file.close()

    def add(self, name: str, jpeg: bytes, about: Mapping[str, object]) -> None:
        """Append an image, and ``about`` as its .json file."""
        if self._file is not None and self._file.tell() + len(jpeg) > SHARD_BYTES:
            self._end()
        if self._file is None or self._tar is None:
            self._file = (self._out / shard_name(len(self._sizes))).open("wb")
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - see _end
        key = f"{len(self._names):09d}"
        self._names.append(name)
        self._places.append((len(self._sizes), self._file.tell() + tarfile.BLOCKSIZE, len(jpeg), crc32(jpeg)))
        for end, data in (("jpg", jpeg), ("json", json.dumps(about).encode())):
            member = tarfile.TarInfo(f"{key}.{end}")
            member.size = len(data)
            self._tar.addfile(member, BytesIO(data))
        self.written = sum(self._sizes) + self._file.tell()

    def _end(self) -> None:
        if self._file is None or self._tar is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._sizes.append(self._file.tell())
        self._file.close()
        self._file = self._tar = None

    def index(self) -> Index:
        """Return the place of each image, once the last shard is closed."""
        places = np.array(self._places, dtype=np.int64).reshape(-1, 4)
        shards, offsets, sizes, checksums = (np.ascontiguousarray(column) for column in places.T)
        return Index(self._names, shards, offsets, sizes, checksums, np.array(self._sizes, dtype=np.int64))
