"""Entries of a folder that are no images of a data set, by their names: what systems, network disks and runs leave."""

import os
from collections.abc import Collection
from typing import Final

RUNS, PICTURES = "folders of runs", "pictures of runs"
_HIDDEN_FILES, _APPLE, _THUMBNAILS = "hidden files", "._* files", "SYNOPHOTO_THUMB_* files"

# Lower case. Of macOS's archives, of Synology's and QNAP's disks, of Windows, of Linux.
_SYSTEM: Final = frozenset(
    (
        "__macosx", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp",
        "$recycle.bin", "system volume information", "found.000", "lost+found",
    )
)  # fmt: skip
_FILES: Final = (".", "SYNOPHOTO_THUMB_")

# A run's folder has one of these; the second next to checkpoints/.
HYDRA, SUMMARY, CHECKPOINTS = ".hydra", "summary.json", "checkpoints"
# Folders that a run makes in its own.
OF_A_RUN: Final = frozenset((CHECKPOINTS, "exported", "features", "wandb"))
# Pictures that the commands write, and the file that each writes next to them.
_PICTURES: Final = {
    **dict.fromkeys(("confusion.png", "per_class.png"), "evaluation.json"),
    **dict.fromkeys(("score.png", "curves.png", "hardness.png", "similarity.png"), "runs.csv"),
    "nearest.png": "nearest.csv",
    "duplicates.png": "duplicates.csv",
}
_RUN_PICTURES: Final = frozenset(("views.png", "neighbours.png", "embedding.png"))
RECORDS: Final = frozenset((SUMMARY, *_PICTURES.values()))


def folder_kind(name: str) -> str | None:
    """Return what to call a folder that is left out, by its name; None for others."""
    return name if name[0] == "." or name.lower() in _SYSTEM else None


def file_kind(name: str) -> str | None:
    """Return what to call a file that is left out, by its name; None for others."""
    if not name.startswith(_FILES):
        return None
    return _APPLE if name.startswith("._") else _HIDDEN_FILES if name[0] == "." else _THUMBNAILS


def is_run(place: str, folders: Collection[str], records: Collection[str]) -> bool:
    """Return whether a folder is that of a run of this program.

    Args:
        place: its path.
        folders: names of the folders in it, the hidden ones too.
        records: names of the files in it that are among `RECORDS`.
    """
    if HYDRA in folders and os.path.isfile(f"{place}/{HYDRA}/config.yaml"):  # noqa: PTH113 - as in `scan`
        return True
    return SUMMARY in records and CHECKPOINTS in folders


def pictures(images: Collection[str], records: Collection[str], *, run: bool) -> list[str]:
    """Return the images of a folder that commands of this program wrote there.

    Args:
        images: names of the images.
        records: names of the files in it that are among `RECORDS`.
        run: whether the folder is that of a run.
    """
    if not records and not run:
        return []
    return [name for name in images if _PICTURES.get(name) in records or (run and name in _RUN_PICTURES)]
