"""Run ``simclr rank ...``: one process of a run on several devices, started by `simclr_lightning.app.launch.ranks`."""

from __future__ import annotations

from simclr_lightning.app.launch.ranks import rank_main as main

__all__ = ["main"]
