"""Make any optimizer of timm by its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch

from simclr_lightning.extras import require
from simclr_lightning.near_names import did_you_mean

_SECOND_ORDER: Final = ("adahessian",)


def timm_optimizer(
    params: Iterable[Any], *, opt: str, lr: float, weight_decay: float = 0.0, **options: Any
) -> torch.optim.Optimizer:
    """Return the optimizer of timm with a name, such as ``lamb``, ``adan`` or ``muon``.

    Args:
        params: parameters or parameter groups, which keep their own ``weight_decay``.
        opt: a name in ``timm.optim.list_optimizers()``.
        lr: the learning rate.
        weight_decay: the weight decay of groups that have none of their own.
        options: further arguments of the optimizer, such as ``betas``.

    Raises:
        ValueError: timm is not installed or has no such optimizer, or it refuses an argument.

    >>> timm_optimizer([torch.zeros(1, requires_grad=True)], opt="lion", lr=1e-4).defaults["lr"]
    0.0001
    """
    require("timm", "optimizer=timm")
    import timm.optim

    optim: Any = timm.optim
    known: list[str] = optim.list_optimizers()
    if opt not in known:
        raise ValueError(f"optimizer.opt={opt}: timm has no such optimizer{did_you_mean(opt, known, count=2)}")
    if opt in _SECOND_ORDER:
        raise ValueError(f"optimizer.opt={opt}: it needs second derivatives, which a step does not compute; use adamw")
    try:
        made: torch.optim.Optimizer = optim.create_optimizer_v2(
            params, opt=opt, lr=lr, weight_decay=weight_decay, **options
        )
        return made
    except (AssertionError, TypeError) as error:  # a package or a GPU is missing, or an argument is unknown
        raise ValueError(f"optimizer.opt={opt}: {error}") from error
