"""Describe the weights from which a run starts."""

from __future__ import annotations

from pathlib import Path

from simclr_lightning import checkpoint
from simclr_lightning.run_folder import read_summary, typed


def weights_note(source: str | None) -> list[str]:
    """Return the line about ``model.weights``: torchvision's, or a run's with its step where that is known; or none.

    Args:
        source: the value of the key.
    """
    if source is None:
        return []
    if source == "imagenet":
        return ["model.weights: torchvision's ImageNet weights"]
    path = Path(source)
    saved = path if path.is_file() and checkpoint.has_digest(path) else None
    if saved is None and not (path / "exported").is_dir() and (found := checkpoint.newest(path)):
        saved = found[0]
    if saved is not None:
        step = checkpoint.load(saved)["global_step"]
    else:
        step = next((n for one in (path, *path.parents[:2]) if (n := read_summary(one).get("steps"))), None)
    return [f"model.weights: the encoder of {typed(path)}" + ("" if step is None else f" at step {step}")]
