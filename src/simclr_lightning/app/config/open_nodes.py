"""Accept keys that conf/ does not list, without a plus, and drop the arguments of a class that was replaced."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf, open_dict

from simclr_lightning.app.config.grammar import Override, trusted_by
from simclr_lightning.app.config.targets import resolve

# Nodes whose targets take more arguments than conf/ lists: such a key needs no plus.
OPEN: Final = ("callbacks.", "early_stopping.", "logger.", "optimizer.", "schedule.", "trainer.")
_REPLACEABLE: Final = ("loss", "optimizer", "schedule")  # parts whose class a user replaces with PART._target_


def opened(text: str) -> str:
    """Return an override as Hydra needs it: with ``++`` if its node takes keys that conf/ does not list.

    >>> opened("trainer.max_time={hours:1}"), opened("seed=1")
    ('++trainer.max_time={hours:1}', 'seed=1')
    """
    return f"++{text}" if text.startswith(OPEN) else text


def remove_unused(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Remove the arguments that conf/ gives to one class from a part for which the command line names another class.

    Args:
        cfg: the composed configuration; changed in place.
        overrides: those of the command line; the keys that they set stay.
    """
    given = {override.key for override in overrides}
    for part in _REPLACEABLE:
        if f"{part}._target_" not in given or not OmegaConf.is_dict(cfg.get(part)):
            continue
        made = resolve(str(cfg[part].get("_target_")), trusted_by(overrides))
        names = None if made is None else arguments_of(made)
        with open_dict(cfg):
            for key in list(cfg[part]):
                if names and not str(key).startswith("_") and key not in names and f"{part}.{key}" not in given:
                    del cfg[part][key]


def arguments_of(made: Any) -> tuple[str, ...] | None:
    """Return the names of a target's keyword arguments; None if it accepts any."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
