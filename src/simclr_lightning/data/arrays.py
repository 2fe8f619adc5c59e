"""`data=array`: images as arrays in one .npz file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simclr_lightning.data.images import Splits, TensorImages, in_memory, numbered
from simclr_lightning.data.paths import looked_in

PARTS = ("train", "val", "test")
KEYS = tuple(f"{part}_{what}" for part in PARTS for what in ("images", "labels"))
SHAPES = "(n, H, W, 3), (n, H, W), (n, H, W, 1), (n, 3, H, W) or (n, 1, H, W)"

# The errors of numpy and zipfile for files that are damaged or are not .npz files.
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
    """Return the images of an .npz file.

    Keys: train_images, and if there are any, train_labels, val_images, val_labels, test_images, test_labels. Images
    are uint8, shaped (n, H, W, 3), (n, 3, H, W), or gray as (n, H, W), (n, H, W, 1) or (n, 1, H, W), which get three
    equal channels.
    Labels are whole numbers from 0, shaped (n,). Class numbers are made dense (0, 1, 2, ... in their order;
    `class_names` holds the file's own numbers). Validation images are the held-out part, or `test` when there are no
    test images. Without them the held-out part is a seeded tenth of train, of every class its share. Nothing pickled
    is read.

    Args:
        path: the .npz file.
        seed: chooses the held-out part where there are no validation images.

    Raises:
        ValueError: no such file, not an .npz, or a key is missing, or its shape or type is wrong; one line that names
            the file, the key and what to do.
    """
    if path is None:
        raise ValueError("data=array needs a file: data.path=FILE.npz, with the keys " + ", ".join(KEYS))
    file = Path(path).expanduser()
    arrays = _read(file)
    images = {part: _images(file, f"{part}_images", arrays) for part in PARTS if f"{part}_images" in arrays}
    labels = {
        part: found
        for part in PARTS
        if (found := _labels(file, f"{part}_labels", arrays, len(images.get(part, ())))) is not None
    }
    _check_pairs(file, images, labels)
    labels, class_names = _dense(labels)
    sets = {part: TensorImages(x, labels.get(part), numbered(f"{part}/", len(x))) for part, x in images.items()}
    notes = _notes(file, arrays)
    if "val" in sets and "test" not in sets:
        sets["test"] = sets.pop("val")
        notes += (f"{file}: val_images are taken as the test part, as there are no test_images",)
    elif "val" in sets:
        notes += (f"{file}: val_images are the held-out part: choices are made on them, and they are never trained on",)
    return in_memory(
        "array", sets["train"], sets.get("test"), val=sets.get("val"), class_names=class_names, seed=seed, notes=notes
    )


def _read(file: Path) -> dict[str, Array]:
    """The arrays of the file by key; an empty array for each key that is not used."""
    if not file.is_file():
        if file.is_dir():
            raise ValueError(f"data.path={file}: is a folder, which data=folder reads; data=array reads one .npz file")
        raise ValueError(f"data.path={file}: there is no such file{looked_in(file)}")
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
            fault = "holds Python objects, which are not read; make it one array of one dtype"
        else:
            fault = "is damaged; write the file again"
        raise ValueError(f"{file}: {key} {fault}") from None
    return loaded


def _images(file: Path, key: str, arrays: dict[str, Array]) -> Tensor:
    """(n, 3, H, W) uint8 of one key."""
    return images_tensor(arrays[key], f"{file}: {key}", least=2 if key == "train_images" else 1)


def images_tensor(found: Array | Tensor, name: str = "the array of images", *, least: int = 1) -> Tensor:
    """Return images as (n, 3, H, W) uint8; gray ones get three equal channels.

    Args:
        found: uint8, of one of `SHAPES`. A shape that can be read both ways is (n, H, W, 3) for an array and
            (n, 3, H, W) for a tensor.
        name: what the messages call it.
        least: the least number of images.

    Raises:
        ValueError: another dtype or shape, or no images.
    """
    shape, dtype, last = tuple(found.shape), str(found.dtype).removeprefix("torch."), isinstance(found, np.ndarray)
    if dtype != "uint8":
        fix = "scale to 0..255 and use astype('uint8')" if "float" in dtype else "use uint8, 0 to 255"
        raise ValueError(f"{name} is {dtype}, must be uint8; {fix}")
    if len(shape) == 3 and (shape[2] in (3, 4) or (shape[0] in (3, 4) and not last)):
        raise ValueError(f"{name} has shape {shape}, which is one image; images are {SHAPES}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3) and shape[1] not in (1, 3)):
        alpha = "; leave the alpha channel out" if len(shape) == 4 and 4 in (shape[1], shape[3]) else ""
        raise ValueError(f"{name} has shape {shape}, must be {SHAPES}{alpha}")
    if 0 in shape or len(found) < least:
        need = f"at least {least} images" if least > 1 else "images, or leave the key out"
        raise ValueError(f"{name} has shape {shape}; it needs {need}")
    images = torch.from_numpy(np.require(found, None, ["C", "W"])) if isinstance(found, np.ndarray) else found.cpu()
    if images.ndim == 3:
        images = images[:, None]
    elif shape[3] in (1, 3) and (last or shape[1] not in (1, 3)):
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


def _check_pairs(file: Path, images: dict[str, Tensor], labels: dict[str, Tensor]) -> None:
    """Refuse labels of some parts alone, and validation images of another size, which lie in one tensor with train."""
    for part in images:
        for having, missing in (("train", part), (part, "train")):
            if having in labels and missing not in labels:
                raise ValueError(
                    f"{file}: {having}_labels is there but {missing}_labels is not; add it, or leave both out"
                )
    sizes = [tuple(images[part].shape[2:]) for part in ("train", "val") if part in images]
    if len(set(sizes)) > 1:
        raise ValueError(f"{file}: train_images are {sizes[0]} pixels and val_images {sizes[1]}; make them one size")


def _dense(labels: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Class numbers 0, 1, 2, ... in place of the file's own, and the file's own as names; None without labels."""
    if "train" not in labels:
        return {}, None
    classes = torch.unique(torch.cat([*labels.values()]))
    dense = {part: torch.searchsorted(classes, found) for part, found in labels.items()}
    return dense, tuple(str(number) for number in classes.tolist())


def _notes(file: Path, arrays: dict[str, Array]) -> tuple[str, ...]:
    unused = [key for key in arrays if key not in KEYS]
    if not unused:
        return ()
    return (f"{file}: keys that are not used: {', '.join(unused[:10])}",)
