"""What a step takes: parameters, floating-point operations and memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simclr_lightning.ntxent.blocks import MEMORY
from simclr_lightning.optim import parameter_groups
from simclr_lightning.preflight.copies import trial, untouched, views
from simclr_lightning.preflight.rates import Context, time_step
from simclr_lightning.simclr import SimCLR

# Images whose memory is counted: it is linear in them. An allocator's blocks blur a few images.
COUNTED, ALLOCATED = (2, 4), (16, 32)
USABLE = 0.9  # share of the free memory that a run can count on


@dataclass(frozen=True)
class Cost:
    """What a step of one process takes; bytes and operations.

    Attributes:
        encoder_parameters: numbers that the encoder learns.
        projector_parameters: numbers that the projector learns.
        flops: a pair's operations, forward and backward of both views; a multiplication and an addition are two.
        weights: bytes of parameters and buffers.
        gradients: bytes.
        optimizer: bytes of its state.
        per_pair: bytes that every further image of this process takes: its views and activations.
        constant: bytes that do not grow with the batch: the loss's blocks at most, and what else was found.
        measured: whether the device's own allocator was asked; else activations are counted as autograd saves them.
    """

    encoder_parameters: int
    projector_parameters: int
    flops: float
    weights: int
    gradients: int
    optimizer: int
    per_pair: float
    constant: float
    measured: bool

    def bytes(self, pairs: int) -> float:
        """The most that a step of ``pairs`` images of this process holds at once."""
        return self.weights + self.gradients + self.optimizer + self.constant + pairs * self.per_pair


def measure_cost(module: SimCLR, *, size: int, device: torch.device, context: Context = nullcontext) -> Cost:
    """Count on a copy, with steps of a few synthetic images.

    Args:
        module: copied, never changed.
        size: side S of a view.
        device: where training will run; on CUDA the allocator's peak is measured.
        context: the precision's autocast.
    """
    with untouched(device):
        twin = trial(module, device)
        flops = pair_flops(twin, size, device, context)
        optimizer = twin.make_optimizer(parameter_groups(twin))
        optimizer.step()
        state = sum(_bytes(_tensors(entry.values())) for entry in optimizer.state.values())
        cuda = device.type == "cuda"
        count, sizes = (_peak_bytes, ALLOCATED) if cuda else (_saved_bytes, COUNTED)
        few, more = (count(twin, pairs, size, device, context) for pairs in sizes)
        slope = (more - few) / (sizes[1] - sizes[0])
        gradients = _bytes(p for p in twin.parameters() if p.requires_grad)
        rest = few - sizes[0] * slope - (gradients if cuda else 0)
        return Cost(
            encoder_parameters=_count(twin.encoder),
            projector_parameters=_count(twin.projector),
            flops=flops,
            weights=_bytes([*twin.parameters(), *twin.buffers()]),
            gradients=gradients,
            optimizer=state,
            per_pair=slope,
            constant=max(0.0, rest) + MEMORY["cuda" if cuda else "cpu"],
            measured=cuda,
        )


def pair_flops(module: SimCLR, size: int, device: torch.device, context: Context = nullcontext) -> float:
    """Operations of forward and backward for one image's two views, the loss's products left out.

    Matrix products and convolutions are counted, as shapes give them; the gradients stay in the module.
    """
    with FlopCounterMode(display=False) as counter:
        time_step(module, COUNTED[0], size, device, context)
    return float(counter.get_total_flops() / COUNTED[0])


def largest_batch(cost: Cost, free: float) -> int:
    """The most images of one process in a step that fit into `USABLE` of ``free`` bytes; 0 when not even the rest."""
    room = USABLE * free - cost.bytes(0)
    return max(0, int(room / cost.per_pair))


def free_bytes(device: torch.device) -> int:
    """Memory that a new process could take: of the device, or of this machine within its container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = _available()
    for limit, used in _CONTAINERS:
        if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
            available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def _available() -> int:
    """What Linux says that new processes can take; elsewhere half of what is built in."""
    table = Path("/proc/meminfo")
    if table.exists():
        return next(int(line.split()[1]) * 1024 for line in table.read_text().splitlines() if "MemAvailable" in line)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


# A container's limit and use: control groups of version 2, and of version 1.
_CONTAINERS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def _saved_bytes(module: SimCLR, pairs: int, size: int, device: torch.device, context: Context) -> float:
    """Views, and what autograd saves of a forward pass for the backward pass; parameters and buffers left out."""
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # shares the storage, so that no address is used twice

    x_a, x_b = views(pairs, size, device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), context():
        loss = module.contrast(x_a, x_b).loss
    del loss
    return float(sum(saved.values()) + x_a.nbytes + x_b.nbytes)


def _peak_bytes(module: SimCLR, pairs: int, size: int, device: torch.device, context: Context) -> float:
    """The allocator's peak in a forward and backward pass beyond what was there before."""
    module.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    time_step(module, pairs, size, device, context)
    return float(torch.cuda.max_memory_allocated(device) - before)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def _tensors(values: Iterable[object]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
