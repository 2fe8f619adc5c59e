"""Compute the exact gradient of a large batch in micro-batches, by gradient caching.

The first pass computes z of all images without storing activations. The loss and its gradient with respect to z are
those of the whole batch. The second pass runs each micro-batch forward again and propagates its rows of that gradient
backward. So activations are stored for one micro-batch at a time. docs/large_batches.md has the mathematics.

Shapes: n images of this process and step, m of them in one micro-batch, S side of a view, D the width of z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import get_device_states, set_device_states

Views = Callable[[slice], tuple[Tensor, ...]]
"""Return all views of some rows of this process's batch, each (m, 3, S, S) in [0, 1]; every call returns the same."""


def micro_batches(rows: int, count: int) -> list[slice]:
    """Split rows 0 to ``rows`` - 1 into at most ``count`` slices, all of one length except the last.

    >>> micro_batches(7, 3)
    [slice(0, 3, None), slice(3, 6, None), slice(6, 7, None)]
    """
    size = -(-rows // count)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def cached_projections(
    network: Callable[[Tensor], Tensor], module: nn.Module, views: Views, parts: Sequence[slice]
) -> tuple[Tensor, ...]:
    """Return z of every view of all n rows, differentiable, in the memory of one micro-batch.

    Values and parameter gradients equal those of running ``network`` once over each micro-batch and storing all
    activations. Without BatchNorm, they also equal those of the whole batch at once. BatchNorm normalizes every
    micro-batch with the statistics of that micro-batch, and updates its running statistics once per micro-batch. Both
    passes draw the same random numbers and use the same autocast; the random generators advance as in one pass. Each
    parameter receives one gradient per backward pass, so DDP reduces it once.

    The last micro-batch runs only once, with its activations stored: its backward pass comes first.

    Args:
        network: maps the V views of m images, (V * m, 3, S, S), to z (V * m, D).
        module: holds the parameters and the buffers that ``network`` uses.
        views: returns all views of some rows; called twice for every part except the last.
        parts: the micro-batches, as consecutive slices of all n rows.

    Returns:
        z of each view, (n, D).
    """
    params = [p for p in module.parameters() if p.requires_grad]
    run = _Run(network, module, views, parts[:-1], params[0].device)
    # Keep this order: random numbers are drawn as in one pass over the parts, and autograd starts with the last part.
    z = [_Cached.apply(run, *params)] if run.parts else []
    z.append(run.project(parts[-1]))
    return _joined(z)


class _Cached(torch.autograd.Function):
    """Run the first pass as forward, without a graph, and the second pass as backward."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *params: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.save_for_backward(*params)  # torch then raises an error if weights change before the backward pass
        return run.first_pass()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.run.second_pass(ctx.saved_tensors, grads)


class _Run:
    """Both passes over those micro-batches of one step that run twice."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        module: nn.Module,
        views: Views,
        parts: Sequence[slice],
        device: torch.device,
    ) -> None:
        self.network = network
        self.module = module
        self.views = views
        self.parts = parts
        self.device = device
        self.autocast = _Autocast.capture(device.type)
        self.random: list[_Random] = []

    def first_pass(self) -> tuple[Tensor, ...]:
        """Return z of all parts, and store the states of the random generators for the second pass."""
        z: list[tuple[Tensor, ...]] = []
        for part in self.parts:
            self.random.append(_Random.capture(self.device))
            with self.autocast.restore():
                z.append(self.project(part))
        return _joined(z)

    def second_pass(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradient of every parameter, summed over the parts; None for a parameter that z does not use."""
        # Sum into new tensors: autograd may return the same tensor as the gradient of two parameters.
        sums = [torch.zeros_like(p) for p in params]
        used: set[int] = set()
        with _unchanged(self.module.buffers()):
            for part, state in zip(self.parts, self.random, strict=True):
                with torch.enable_grad(), state.restore(), self.autocast.restore():
                    z = self.project(part)
                found = torch.autograd.grad(z, params, [grad[part] for grad in grads], allow_unused=True)
                here = {i: grad for i, grad in enumerate(found) if grad is not None}
                torch._foreach_add_([sums[i] for i in here], list(here.values()))
                used |= here.keys()
        return [total if i in used else None for i, total in enumerate(sums)]

    def project(self, part: slice) -> tuple[Tensor, ...]:
        """Return z of every view of one part, from one forward pass."""
        with torch.autocast(self.device.type, enabled=False):  # the views are made in full precision
            views = self.views(part)
            x_VmCHW = torch.cat(views)
        return self.network(x_VmCHW).chunk(len(views))


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the rows of all parts, for each view."""
    return tuple(torch.cat(rows) for rows in zip(*parts, strict=True))


@dataclass(frozen=True)
class _Autocast:
    """The autocast settings of a device."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @staticmethod
    def capture(device: str) -> _Autocast:
        return _Autocast(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def restore(self) -> torch.autocast:
        # Without the cache: a weight that was cast in the first pass has no gradient for the second.
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False)


@dataclass(frozen=True)
class _Random:
    """The states of the random generators of the CPU and of one device, read without waiting for the device."""

    device: torch.device
    host: Tensor
    ids: list[int]
    states: list[Tensor]

    @staticmethod
    def capture(device: torch.device) -> _Random:
        ids, states = get_device_states(torch.empty(0, device=device))
        return _Random(device, torch.get_rng_state(), ids, states)

    @contextmanager
    def restore(self) -> Iterator[None]:
        """Set the generators to these states inside the block, and back to their current states after it."""
        kind = self.device.type if self.ids else "cuda"  # without ids, fork_rng restores only the CPU's generator
        with torch.random.fork_rng(self.ids, device_type=kind):
            torch.set_rng_state(self.host)
            set_device_states(self.ids, self.states, device_type=self.device.type)
            yield


@contextmanager
def _unchanged(buffers: Iterator[Tensor]) -> Iterator[None]:
    """Undo all changes to buffers, such as running statistics, at the end of the block."""
    now = list(buffers)
    before = [buffer.clone() for buffer in now]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(now, before, strict=True):
                buffer.copy_(value)
