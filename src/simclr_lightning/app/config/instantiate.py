"""Make the object that a node of the configuration names with ``_target_``."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from simclr_lightning.app.config.plain import from_plain, to_plain


def make(node: DictConfig, **options: Any) -> Any:
    """Instantiate a node of the configuration; each string is resolved once.

    Hydra resolves a node, and then each of its values again. Without the escaping here, that second time would
    interpolate a ``${`` that is part of a file's name, after `targets` has checked the node.

    Args:
        node: a node with ``_target_``, checked by `targets`.
        options: further arguments of the target.
    """
    return instantiate(from_plain(to_plain(node), reads=2), _convert_="all", **options)
