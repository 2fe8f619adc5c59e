"""`data=array`: images that are already arrays, in one .npz file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simclr_lightning.data.images import Splits, TensorImages, in_memory, numbered

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
SHAPES = "(n, H, W, 3), (n, H, W), (n, H, W, 1) or (n, 3, H, W)"

# What numpy and zipfile raise for files that are damaged or something else.
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)

Array = NDArray[np.generic]


def array(path: Path | str | None, *, seed: int = 0) -> Splits:
    """The images of an .npz file.

    Keys: train_images, and if there are any, train_labels, test_images, test_labels. Images are uint8,
    shaped (n, H, W, 3), (n, H, W), (n, H, W, 1) or (n, 3, H, W); grey ones are given three equal channels.
    Labels are whole numbers from 0, shaped (n,). Class numbers are made dense (0, 1, 2, ... in their order;
    `class_names` holds the file's own numbers). Without test images `test` is None. The held-out part is a
    seeded tenth of train, of every class its share. Nothing pickled is read.

    Args:
        path: the .npz file.
        seed: chooses the held-out part.

    Raises:
        ValueError: no such file, not an .npz, or a key is missing, shaped or typed otherwise; one line that
            names the file, the key and the mend.
    """
    if path is None:
        raise ValueError("data=array needs a file: data.path=FILE.npz, with the keys " + ", ".join(KEYS))
    file = Path(path).expanduser()
    arrays = _read(file)
    train = _images(file, "train_images", arrays)
    test = _images(file, "test_images", arrays) if "test_images" in arrays else None
    train_labels = _labels(file, "train_labels", arrays, len(train))
    test_labels = _labels(file, "test_labels", arrays, 0 if test is None else len(test))
    _check_pairs(file, arrays)
    train_labels, test_labels, class_names = _dense(train_labels, test_labels)
    return in_memory(
        "array",
        TensorImages(train, train_labels, numbered("train/", len(train))),
        None if test is None else TensorImages(test, test_labels, numbered("test/", len(test))),
        class_names=class_names,
        seed=seed,
        notes=_notes(file, arrays),
    )


def _read(file: Path) -> dict[str, Array]:
    """The arrays of the known keys; the others' names with empty arrays, for a note."""
    if not file.is_file():
        what = "is a folder (data=folder reads those)" if file.is_dir() else "does not exist"
        raise ValueError(f"data.path={file}: {what}; data=array reads one .npz file")
    with file.open("rb") as opened:
        try:
            archive = np.load(opened, allow_pickle=False)
        except UNREADABLE:
            archive = None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{file}: not an .npz file, or damaged; write it with numpy.savez")
        if "train_images" not in archive.files:
            found = ", ".join(archive.files[:10]) or "none"
            raise ValueError(f"{file}: the key train_images is missing; the keys found are: {found}")
        return {key: _member(file, archive, key) for key in archive.files}


def _member(file: Path, archive: "np.lib.npyio.NpzFile", key: str) -> Array:
    if key not in KEYS:
        return np.empty(0)
    try:
        loaded: Array = archive[key]
    except MemoryError:
        raise ValueError(f"{file}: {key} does not fit in memory; use data=folder") from None
    except UNREADABLE as error:
        if "allow_pickle" in str(error):
            mend = "holds Python objects, which are not read; make it one array of one dtype"
        else:
            mend = "is damaged; write the file again"
        raise ValueError(f"{file}: {key} {mend}") from None
    return loaded


def _images(file: Path, key: str, arrays: dict[str, Array]) -> Tensor:
    """(n, 3, H, W) uint8 of one key."""
    found = arrays[key]
    shape = found.shape
    if found.dtype != np.uint8:
        mend = "scale to 0..255 and use astype('uint8')" if found.dtype.kind == "f" else "use uint8, 0 to 255"
        raise ValueError(f"{file}: {key} is {found.dtype}, must be uint8; {mend}")
    if len(shape) == 3 and shape[2] in (3, 4):
        raise ValueError(f"{file}: {key} has shape {shape}, which is one image; images are {SHAPES}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3) and shape[1] != 3):
        alpha = "; leave the alpha channel out" if len(shape) == 4 and 4 in (shape[1], shape[3]) else ""
        raise ValueError(f"{file}: {key} has shape {shape}, must be {SHAPES}{alpha}")
    if found.size == 0 or (key == "train_images" and len(found) < 2):
        need = "at least 2 images" if key == "train_images" else "images, or leave the key out"
        raise ValueError(f"{file}: {key} has shape {shape}: nothing to use; it needs {need}")
    images = torch.from_numpy(found)
    if images.ndim == 3:
        images = images[:, None]
    elif shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    return images.expand(-1, 3, -1, -1).contiguous()


def _labels(file: Path, key: str, arrays: dict[str, Array], count: int) -> Tensor | None:
    """(n,) int64 of one key, None when it is not in the file."""
    if key not in arrays:
        return None
    found = arrays[key]
    images = key.replace("labels", "images")
    if found.dtype.kind not in "iu":
        raise ValueError(f"{file}: {key} is {found.dtype}, must be whole numbers from 0; use astype('int64')")
    if found.shape != (count,):
        flat = "; use reshape(-1)" if found.size == count else ""
        raise ValueError(f"{file}: {key} has shape {found.shape}, but {images} needs ({count},){flat}")
    if found.min() < 0 or found.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{file}: {key} holds {found.min()}; labels are whole numbers from 0")
    return torch.from_numpy(found.astype(np.int64))


def _check_pairs(file: Path, arrays: dict[str, Array]) -> None:
    """Labels of both splits or of none: scores on test need both."""
    for having, missing in (("train_labels", "test_labels"), ("test_labels", "train_labels")):
        if having in arrays and missing not in arrays and "test_images" in arrays:
            raise ValueError(f"{file}: {having} is there but {missing} is not; add it, or leave both out")


def _dense(train: Tensor | None, test: Tensor | None) -> tuple[Tensor | None, Tensor | None, tuple[str, ...] | None]:
    """Class numbers 0, 1, 2, ... in place of the file's own, and the file's own as names."""
    if train is None:
        return None, None, None
    classes = torch.unique(train if test is None else torch.cat((train, test)))
    dense = [None if labels is None else torch.searchsorted(classes, labels) for labels in (train, test)]
    return dense[0], dense[1], tuple(str(number) for number in classes.tolist())


def _notes(file: Path, arrays: dict[str, Array]) -> tuple[str, ...]:
    unused = [key for key in arrays if key not in KEYS]
    if not unused:
        return ()
    return (f"{file}: keys that are not used: {', '.join(unused[:10])}",)
