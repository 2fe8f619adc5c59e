"""LARS, layer-wise adaptive rate scaling, by its definition and without waiting for the device.

Legend: w a parameter, g its gradient, v its momentum buffer. Norms are Euclidean, over one whole parameter.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

# numbers updated together on a CPU, a megabyte of float32: about the cache of one core
_CPU_NUMBERS: Final = 1 << 18


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, in the classic form: the learning rate enters the momentum buffer.

    For every parameter, with g' = g + weight_decay * w::

        trust = trust_coefficient * |w| / |g'|    if the group adapts and both norms are positive, else 1
        v     = momentum * v + lr * trust * g'
        w     = w - v

    Source: paper section 2.2 and the authors' released optimiser; momentum is not Nesterov's. Parameters of
    groups with ``adapt=False`` (BatchNorm and biases, see ``parameter_groups``) are plain SGD with momentum.

    Args:
        params: parameters, or groups; a group may set any number below, and ``adapt`` (bool, True
            unless given).
        lr: learning rate, >= 0, in whole updates (not per image).
        momentum: in [0, 1).
        weight_decay: >= 0.
        trust_coefficient: > 0.

    Attributes:
        found_inf: None, or a tensor of one element. When it is not zero, ``step`` leaves every weight and
            every buffer as it is, bit for bit, whatever the gradients hold, and the host never reads it.

    Raises:
        ValueError: a number is out of its range, or a gradient is sparse.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        numbers = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, {**numbers, "adapt": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group (``params`` and any of the options above), its numbers checked."""
        _check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("adapt", True)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one update; ``closure``, when given, is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in _batches(group["params"]):
                _update(weights, [self._buffer(w) for w in weights], group, self.found_inf)
        return loss

    def _buffer(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer = state["momentum_buffer"]
        assert isinstance(buffer, Tensor)
        return buffer


def _check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for a group whose numbers are out of range."""
    # written so that NaN fails too
    if not group["lr"] >= 0:
        raise ValueError(f"LARS: lr is {group['lr']}; it must be at least 0")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"LARS: momentum is {group['momentum']}; it must be in [0, 1)")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"LARS: weight_decay is {group['weight_decay']}; it must be at least 0")
    if not group["trust_coefficient"] > 0:
        raise ValueError(f"LARS: trust_coefficient is {group['trust_coefficient']}; it must be above 0")


def _batches(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parameters that have gradients in lists of one device and dtype, each updated as one.

    A GPU gets one list. A CPU gets several, because there the update's time is the page faults of its one
    temporary: small ones come from memory that is at hand.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            raise ValueError("LARS needs dense gradients; make the embedding with sparse=False")
        kind = kinds.setdefault((param.device, param.dtype), [])
        kind.append(param)
        if param.device.type == "cpu" and sum(p.numel() for p in kind) > _CPU_NUMBERS:
            yield kinds.pop((param.device, param.dtype))
    yield from kinds.values()


def _update(weights: list[Tensor], buffers: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
    """Update weights and buffers of one kind in place; nothing here waits for the device."""
    grads = [w.grad for w in weights if w.grad is not None]
    decay = group["weight_decay"]
    # one temporary, never the gradients themselves: they are the caller's
    steps = list(torch._foreach_add(grads, weights, alpha=decay)) if decay != 0 else grads
    rates = group["lr"]
    if group["adapt"]:
        trust = _trust(weights, steps, group["trust_coefficient"])
        rates = list((rates * trust).to(weights[0].dtype).unbind())
    if decay != 0:
        torch._foreach_mul_(steps, rates)
    else:
        steps = list(torch._foreach_mul(steps, rates))
    # The fused kernel walks memory, not indices, so that all three lists must be laid out alike.
    laid = [_laid_like(w, v) for w, v in zip(weights, buffers, strict=True)]
    # With the rates already inside the steps, SGD at lr 1 is v = momentum v + step; w = w - v. This kernel
    # also skips everything when found_inf is 1, which no arithmetic mask does bit for bit (0 * NaN, -0 + 0).
    torch._fused_sgd_(
        laid,
        [_laid_like(s, v) for s, v in zip(steps, buffers, strict=True)],
        buffers,
        weight_decay=0.0,
        momentum=group["momentum"],
        lr=1.0,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,  # buffers start as zeros
        grad_scale=None,
        found_inf=None if found_inf is None else _flag(found_inf, weights[0].device),
    )
    for w, copy in zip(weights, laid, strict=True):
        if copy is not w:
            w.copy_(copy)


def _trust(weights: list[Tensor], grads: list[Tensor], coefficient: float) -> Tensor:
    """Return the trust ratio of every parameter, as one vector on their device."""
    # half precision would overflow in the squares and underflow in the coefficient
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    w_norms = torch.stack(torch._foreach_norm(weights, 2, dtype))
    g_norms = torch.stack(torch._foreach_norm(grads, 2, dtype))
    ratios = coefficient * w_norms / g_norms
    return torch.where((w_norms > 0) & (g_norms > 0), ratios, torch.ones_like(ratios))


def _laid_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return the tensor itself where its memory is laid out as the model's, else a copy that is."""
    if tensor.stride() == model.stride():
        return tensor
    # strides of axes of length 1 mean nothing
    pairs = zip(tensor.shape, tensor.stride(), model.stride(), strict=True)
    if all(length == 1 or a == b for length, a, b in pairs):
        return tensor
    return torch.empty_like(model).copy_(tensor)


def _flag(found_inf: Tensor, device: torch.device) -> Tensor:
    """Return 1 where found_inf is anything but 0 (NaN too), else 0: the kernel compares with 1."""
    return (found_inf.detach().reshape(()) != 0).to(device, torch.float32)
