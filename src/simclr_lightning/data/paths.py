"""What a message about a path that is not there adds."""

from pathlib import Path


def looked_in(path: Path) -> str:
    """Return the folder that a relative path was resolved against, as text; for an absolute one, what to check.

    >>> looked_in(Path("/data/imgs"))
    '; check the spelling'
    """
    return "; check the spelling" if path.is_absolute() else f" (looked in {Path.cwd()})"
