"""Optimize with LARS (layer-wise adaptive rate scaling), without waiting for the device.

Legend: w a parameter, g its gradient, v its momentum buffer. Norms are Euclidean, over all numbers of one parameter.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

# Numbers that a CPU updates at once. They are a megabyte of float32, about the cache of one core.
_CPU_NUMBERS: Final = 1 << 18


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling in its original form: the learning rate is part of the momentum buffer.

    For every parameter, with g' = g + weight_decay * w::

        trust = trust_coefficient * |w| / |g'|    if the group adapts and both norms are positive, else 1
        v     = momentum * v + lr * trust * g'
        w     = w - v

    Groups with ``adapt=False`` (BatchNorm and biases, see ``parameter_groups``) are trained by SGD with momentum. The
    momentum is not Nesterov's. Source: paper section 2.2 and the optimizer in the authors' code.

    Args:
        params: parameters or groups. A group may set each of the options below, and ``adapt`` (bool, True by default).
        lr: learning rate per update, at least 0.
        momentum: in [0, 1).
        weight_decay: at least 0.
        trust_coefficient: above 0.

    Attributes:
        found_inf: None, or a tensor with one element. If it is not 0, ``step`` changes no weight and no buffer,
            whatever the gradients are. The host never reads it.

    Raises:
        ValueError: an option is out of its range or, in ``step``, a gradient is sparse.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([0.0, 1.0])
    >>> LARS([weight], lr=100.0).step()  # trust = 0.001 * 5 / 1
    >>> weight.data
    tensor([3.0000, 3.5000])
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
        """Check the options of a group and add it: ``params`` and any of the options above."""
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
        """Update all parameters once; return the loss of ``closure``, which is called first, if given."""
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
    """Raise ValueError if an option of the group is out of its range."""
    # ``not x >= 0`` also rejects NaN
    if not group["lr"] >= 0:
        raise ValueError(f"optimizer.lr is {group['lr']}; LARS needs at least 0")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"optimizer.momentum is {group['momentum']}; LARS needs a number in [0, 1)")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"optimizer.weight_decay is {group['weight_decay']}; LARS needs at least 0")
    if not group["trust_coefficient"] > 0:
        raise ValueError(f"optimizer.trust_coefficient is {group['trust_coefficient']}; LARS needs more than 0")


def _batches(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield lists of parameters with gradients, each of one device and dtype, to update at once.

    A GPU gets one list. A CPU gets several short lists: their temporary tensors reuse memory, where one large tensor
    would spend most of the update on page faults.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for param in params:
        if param.grad is None:
            continue
        if param.grad.is_sparse:
            raise ValueError("LARS needs dense gradients; create the embedding with sparse=False")
        kind = kinds.setdefault((param.device, param.dtype), [])
        kind.append(param)
        if param.device.type == "cpu" and sum(p.numel() for p in kind) > _CPU_NUMBERS:
            yield kinds.pop((param.device, param.dtype))
    yield from kinds.values()


def _update(weights: list[Tensor], buffers: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
    """Update weights of one device and dtype, and their buffers, in place, without waiting for the device."""
    grads = [w.grad for w in weights if w.grad is not None]
    decay = group["weight_decay"]
    # ``steps`` becomes a new list of tensors before it is changed: the gradients belong to the caller.
    steps = list(torch._foreach_add(grads, weights, alpha=decay)) if decay != 0 else grads
    rates = group["lr"]
    if group["adapt"]:
        trust = _trust(weights, steps, group["trust_coefficient"])
        rates = list((rates * trust).to(weights[0].dtype).unbind())
    if decay != 0:
        torch._foreach_mul_(steps, rates)
    else:
        steps = list(torch._foreach_mul(steps, rates))
    # The fused kernel goes through memory in order, so all three lists need the same strides.
    aligned = [_with_strides_of(w, v) for w, v in zip(weights, buffers, strict=True)]
    # The steps contain the rates, so SGD with lr 1 is v = momentum v + step; w = w - v. This kernel also skips the
    # whole update if found_inf is 1. A mask by arithmetic would change bits (0 * NaN, -0 + 0).
    torch._fused_sgd_(
        aligned,
        [_with_strides_of(s, v) for s, v in zip(steps, buffers, strict=True)],
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
    for w, copy in zip(weights, aligned, strict=True):
        if copy is not w:
            w.copy_(copy)


def _trust(weights: list[Tensor], grads: list[Tensor], coefficient: float) -> Tensor:
    """Return the trust ratios of n parameters, (n,), on their device."""
    # In half precision the squares would overflow and the coefficient would underflow.
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    w_norms = torch.stack(torch._foreach_norm(weights, 2, dtype))
    g_norms = torch.stack(torch._foreach_norm(grads, 2, dtype))
    ratios = coefficient * w_norms / g_norms
    return torch.where((w_norms > 0) & (g_norms > 0), ratios, torch.ones_like(ratios))


def _with_strides_of(tensor: Tensor, model: Tensor) -> Tensor:
    """Return the tensor itself if its strides are those of ``model``, else a copy with these strides."""
    if tensor.stride() == model.stride():
        return tensor
    # The stride of an axis of length 1 has no meaning.
    pairs = zip(tensor.shape, tensor.stride(), model.stride(), strict=True)
    if all(length == 1 or a == b for length, a, b in pairs):
        return tensor
    return torch.empty_like(model).copy_(tensor)


def _flag(found_inf: Tensor, device: torch.device) -> Tensor:
    """Return 0.0 if found_inf is 0, else (also for NaN) 1.0, with which the kernel compares."""
    return (found_inf.detach().reshape(()) != 0).to(device, torch.float32)
