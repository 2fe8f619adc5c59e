"""The scores that may choose best.ckpt, and a sweep's best run (``select=``): the held-out part of train gives each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LABELED: Final[dict[str, int]] = {"knn_top1": 1, "linear_top1": 1}
"""Scores that need labels, with 1 where a higher value is better and -1 where a lower one is."""

LABEL_FREE: Final[dict[str, int]] = {
    "held_out_loss": -1,
    "contrastive_accuracy": 1,
    "alignment": -1,
    "uniformity": -1,
    "rankme": 1,
    "effective_rank": 1,
    "neighbour_agreement": 1,
}
"""Scores of two views without labels, with the same signs."""

SELECTABLE: Final[dict[str, int]] = {**LABELED, **LABEL_FREE}


def selected(found: Mapping[str, float], select: str) -> float | None:
    """Return the score that ``select`` names with the sign under which higher is better; None when it is not there.

    Args:
        found: scores by their names in `SELECTABLE`.
        select: one of those names, or "auto": ``knn_top1`` where it was measured, else ``held_out_loss``.

    >>> selected({"held_out_loss": 2.5, "rankme": 7.0}, "auto")
    -2.5
    """
    if select == "auto":
        select = "knn_top1" if "knn_top1" in found else "held_out_loss"
    return SELECTABLE[select] * found[select] if select in found else None
