"""The large batch out of micro-batches, with exactly its gradient: gradient caching.

z of all images comes first, without what a backward pass would need; the loss and its gradient on z are those of
the whole batch; then each micro-batch goes forward once more and takes its rows of that gradient backward. What an
encoder keeps for its backward pass is held for one micro-batch at a time. docs/large_batches.md has the mathematics.

Shapes: n images of this process and step, m of them in one micro-batch, D the projector's output size.
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

Views = Callable[[slice], tuple[Tensor, Tensor]]
"""Both views of some rows of this process's batch, each (m, 3, S, S) in [0, 1]; the same ones whenever it is asked."""


def micro_batches(rows: int, count: int) -> list[slice]:
    """The rows 0 to ``rows`` - 1 in at most ``count`` runs, equal but for the last."""
    size = -(-rows // count)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def cached_projections(
    network: Callable[[Tensor], Tensor], module: nn.Module, views: Views, parts: Sequence[slice]
) -> tuple[Tensor, Tensor]:
    """z of both views of all rows, differentiable, at the memory of one micro-batch.

    The values and the gradients of ``module``'s parameters are those of running ``network`` over the micro-batches and
    keeping everything; without BatchNorm, those of the whole batch at once. BatchNorm normalises each micro-batch by
    its own statistics, and its running statistics see every micro-batch once. Random layers draw the same numbers in
    both passes; the generators are left where one pass leaves them. The second pass has the autocast of the first.
    A parameter's gradient reaches it once a backward pass, whatever the number of micro-batches, so that DDP reduces
    it once.

    The last micro-batch is kept as it is: its backward pass comes first, so nothing is saved by running it twice.

    Args:
        network: both views of m images, (2m, 3, S, S) -> z (2m, D).
        module: holds the parameters and the buffers that ``network`` uses.
        views: makes both views of some rows; asked twice for all but the last part.
        parts: the rows, in micro-batches: in order, none left out.

    Returns:
        z_a and z_b, each (n, D).
    """
    params = [p for p in module.parameters() if p.requires_grad]
    run = _Run(network, module, views, parts[:-1], params[0].device)
    # In this order: random numbers are drawn as in one pass over the parts, and autograd goes backward through
    # what was made last first.
    z = [_Cached.apply(run, *params)] if run.parts else []
    z.append(run.project(parts[-1]))
    z_a, z_b = zip(*z, strict=True)
    return torch.cat(z_a), torch.cat(z_b)


class _Cached(torch.autograd.Function):
    """Forward without a graph; backward makes it again, part by part."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *params: Tensor) -> tuple[Tensor, Tensor]:
        ctx.run = run
        ctx.save_for_backward(*params)  # torch then refuses weights that were changed in between
        return run.first()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_a: Tensor, g_b: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.run.second(ctx.saved_tensors, g_a, g_b)


class _Run:
    """Both passes over the micro-batches of one step that are run twice."""

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
        self.autocast = _Autocast.now(device.type)
        self.random: list[_Random] = []

    def first(self) -> tuple[Tensor, Tensor]:
        """z of all parts; notes the random numbers that the second pass is to draw again."""
        z: list[tuple[Tensor, Tensor]] = []
        for part in self.parts:
            self.random.append(_Random.now(self.device))
            with self.autocast.again():
                z.append(self.project(part))
        z_a, z_b = zip(*z, strict=True)
        return torch.cat(z_a), torch.cat(z_b)

    def second(self, params: Sequence[Tensor], g_a: Tensor, g_b: Tensor) -> list[Tensor | None]:
        """The gradient of every parameter, summed over the parts; None where a parameter has no influence."""
        # Sums of their own: two parameters may be given one and the same tensor as their gradient.
        sums = [torch.zeros_like(p) for p in params]
        used: set[int] = set()
        with _unchanged(self.module.buffers()):
            for part, state in zip(self.parts, self.random, strict=True):
                with torch.enable_grad(), state.again(), self.autocast.again():
                    z_a, z_b = self.project(part)
                found = torch.autograd.grad((z_a, z_b), params, (g_a[part], g_b[part]), allow_unused=True)
                here = {i: grad for i, grad in enumerate(found) if grad is not None}
                torch._foreach_add_([sums[i] for i in here], list(here.values()))
                used |= here.keys()
        return [total if i in used else None for i, total in enumerate(sums)]

    def project(self, part: slice) -> tuple[Tensor, Tensor]:
        """z of both views of one part, in one forward pass."""
        with torch.autocast(self.device.type, enabled=False):  # half precision is for the network alone
            x_2mCHW = torch.cat(self.views(part))
        z_a, z_b = self.network(x_2mCHW).chunk(2)
        return z_a, z_b


@dataclass(frozen=True)
class _Autocast:
    """The autocast of a device, to be entered again."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @staticmethod
    def now(device: str) -> _Autocast:
        return _Autocast(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def again(self) -> torch.autocast:
        # A weight that was cast without gradient must not serve where there is one, so nothing is remembered.
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.enabled, cache_enabled=False)


@dataclass(frozen=True)
class _Random:
    """The states of the generators of the CPU and of one device; no device is waited for."""

    device: torch.device
    host: Tensor
    ids: list[int]
    states: list[Tensor]

    @staticmethod
    def now(device: torch.device) -> _Random:
        ids, states = get_device_states(torch.empty(0, device=device))
        return _Random(device, torch.get_rng_state(), ids, states)

    @contextmanager
    def again(self) -> Iterator[None]:
        """These states inside; outside nothing has been drawn."""
        kind = self.device.type if self.ids else "cuda"  # with no ids, any kind: only the CPU's is kept
        with torch.random.fork_rng(self.ids, device_type=kind):
            torch.set_rng_state(self.host)
            set_device_states(self.ids, self.states, device_type=self.device.type)
            yield


@contextmanager
def _unchanged(buffers: Iterator[Tensor]) -> Iterator[None]:
    """Give buffers (running statistics) back what they hold now."""
    now = list(buffers)
    before = [buffer.clone() for buffer in now]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(now, before, strict=True):
                buffer.copy_(value)
