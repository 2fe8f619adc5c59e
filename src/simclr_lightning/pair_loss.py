"""Call any loss of projections: the protocols of the loss, and the checks of what it takes and returns.

Shapes: N images of this process, D the width of z.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class LossOutput(Protocol):
    """Hold the loss, with a gradient, as a scalar Tensor."""

    @property
    def loss(self) -> Tensor:
        """The value to minimize, a Tensor of shape ()."""
        ...


class PairLoss(Protocol):
    """Compute the loss of N pairs of projections, with row i of z_a and z_b from one image. `NTXent` is one.

    The result is a Tensor of shape (), or a `LossOutput` that holds it. All of these are optional:

    - an argument ``labels``: it gets the labels (N,) of the batch, if the batch has them.
    - further positional arguments, such as ``*z``: the loss then takes the projections of more than two views.
    - ``accuracy`` and ``entropy`` of the output, Tensors of shape (): `SimCLR` logs them as metrics.
    - ``temperature`` of the loss, a float: the divisor of cosines, for scores and measurements at that temperature.
    - ``gather`` of the loss, a bool: False makes it communicate with no other rank, as when a copy is measured.

    Each rank calls the loss on its own rows, and DDP averages the gradients over ranks. A loss that compares rows of
    different ranks must gather them itself. It may be an ``nn.Module`` with parameters, which are then trained too.

    >>> import torch
    >>> def alignment(z_a, z_b):
    ...     return (z_a - z_b).square().sum(dim=1).mean()
    >>> compare(alignment, [torch.zeros(2, 8), torch.ones(2, 8)]).loss
    tensor(8.)
    """

    def __call__(self, z_a: Tensor, z_b: Tensor, /) -> Tensor | LossOutput:
        """Return the loss of z_a and z_b, each (N, D)."""
        ...


class _BareLoss(NamedTuple):
    """The output of a loss that returned a Tensor."""

    loss: Tensor


def compare(loss: Callable[..., Any], z: Sequence[Tensor], labels: Tensor | None = None) -> LossOutput:
    """Return the output of the loss for the projections z of each view, (N, D), as an object with ``.loss``.

    Args:
        loss: see `PairLoss`.
        z: the projections, one Tensor for each view.
        labels: (N,), passed if the loss has an argument of that name.

    Raises:
        ValueError: the loss takes fewer views, needs labels that the batch does not have, or returned no scalar.
    """
    takes = _taken(_function(loss))
    name = type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", type(loss).__name__)
    if len(z) > takes.views:
        raise ValueError(f"the batch has {len(z)} views, and the loss {name} takes {takes.views}")
    if takes.labels == "needed" and labels is None:
        raise ValueError(f'the loss {name} needs labels: use batches ((x_a, x_b), y), or with the key "y"')
    found = loss(*z, labels=labels) if takes.labels and labels is not None else loss(*z)
    out: LossOutput = _BareLoss(found) if isinstance(found, Tensor) else found
    value = getattr(out, "loss", None)
    if not isinstance(value, Tensor) or value.ndim:
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(found).__name__
        raise ValueError(f"the loss returned {kind}; it must return a Tensor of shape (), or an object with .loss")
    return out


def needs_labels(loss: Callable[..., Any]) -> bool:
    """Return whether a loss has an argument ``labels`` without a default.

    >>> needs_labels(lambda z_a, z_b, labels: z_a.mean()), needs_labels(lambda z_a, z_b, labels=None: z_a.mean())
    (True, False)
    """
    return _taken(_function(loss)).labels == "needed"


class _Taken(NamedTuple):
    """The arguments of a loss."""

    views: float
    """The maximum number of views."""
    labels: str
    """"needed", "optional", or "" if it takes no labels."""


@functools.lru_cache
def _taken(function: Callable[..., Any]) -> _Taken:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of an extension module
        return _Taken(2, "")
    by_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    labels = next((p for p in parameters if p.name == "labels" and p.kind != p.POSITIONAL_ONLY), None)
    count = sum(p.name not in ("self", "labels") and p.default is p.empty for p in by_place)
    views = float("inf") if any(p.kind == p.VAR_POSITIONAL for p in parameters) else max(count, 2)
    names = [p.name for p in by_place if p.name != "self"]
    if names[1:2] == ["labels"]:  # a loss of one batch of embeddings and their labels
        views = 1
    return _Taken(views, "" if labels is None else "needed" if labels.default is labels.empty else "optional")


def _function(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the loss's arguments; of a module, ``forward`` of its class."""
    if isinstance(loss, nn.Module):
        return loss.__dict__.get("forward", type(loss).forward)
    return loss if inspect.isroutine(loss) or isinstance(loss, functools.partial) else type(loss).__call__
