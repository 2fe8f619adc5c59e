"""TODO"""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from simclr_lightning.app.config.plain import from_plain, to_plain


def make(node: DictConfig, **options: Any) -> Any:
    """What a node's ``_target_`` makes of it, every string as it stands once it is resolved.

    Hydra resolves a node, and each value again when it reads it: a ``${`` that is part of a name would be followed,
    to whatever it says, after the checks.
    """
    return instantiate(from_plain(to_plain(node), reads=2), _convert_="all", **options)
