"""`data=hf`: local files of Hugging Face's package ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from simclr_lightning.data.adapt import splits_of
from simclr_lightning.data.images import Splits
from simclr_lightning.data.paths import looked_in
from simclr_lightning.extras import require

# The builders of local files, by extension; none of them runs code of the data set.
_BUILDERS: Final = {
    ".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json", ".csv": "csv",
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "imagefolder"),
}  # fmt: skip


def hf(path: Path | str | None, *, image: str | None = None, label: str | None = None, seed: int = 0) -> Splits:
    """Return the images of a data set in local files; nothing is downloaded, and no code of it runs.

    Args:
        path: a folder written by ``save_to_disk``; or a folder or file of Parquet, Arrow, JSON or CSV, or a folder of
            images, which ``load_dataset`` reads. The latter are converted once into its cache
            (``~/.cache/huggingface/datasets``).
        image: the column of the images; None: found by its type.
        label: the column of the classes; None: found by its type.
        seed: chooses the held-out part, where there is no part "validation".

    Raises:
        ValueError: ``datasets`` is not installed, there is no such path, or it is no such data set.
    """
    require("datasets", "data=hf", "hf")
    if path is None:
        raise ValueError("data=hf needs local files: data.path=DIR, written by save_to_disk, or of Parquet files")
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(f"data.path={place}: there is no such folder or file{looked_in(place)}")
    import datasets

    try:
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            found = datasets.load_from_disk(str(place))
        else:
            files = {"data_dir": str(place)} if place.is_dir() else {"data_files": str(place)}
            found = datasets.load_dataset(_builder(place), **files)
    except ValueError as error:
        raise ValueError(f"data.path={place}: {_first(error)}") from error
    except Exception as error:  # the package raises errors of many classes for damaged files
        raise ValueError(f"data.path={place}: cannot be read ({type(error).__name__}: {_first(error)})") from error
    return splits_of(found, image=image, label=label, seed=seed)


def _builder(place: Path) -> str:
    """Return the builder for a file, or for the first file with a known extension below a folder."""
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    found = [_BUILDERS[file.suffix.lower()] for file in files if file.suffix.lower() in _BUILDERS]
    if not found:
        raise ValueError(
            "there is no data set of datasets.save_to_disk in it, and no Parquet, Arrow, JSON, CSV or image file"
        )
    return "imagefolder" if "imagefolder" in found else found[0]


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
