"""Measure what a training step needs: parameters, floating-point operations and memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simclr_lightning import machine
from simclr_lightning.ntxent.blocks import MEMORY
from simclr_lightning.optim import parameter_groups
from simclr_lightning.preflight.copies import trial, untouched, views
from simclr_lightning.preflight.rates import Context, time_step
from simclr_lightning.simclr import SimCLR

# Memory is linear in the number of images, so it is measured for two numbers of images: if autograd's tensors are
# counted, and if the allocator of a GPU, which rounds up to blocks, is read.
COUNTED, ALLOCATED = (2, 4), (16, 32)
USABLE = 0.9  # share of the free memory that a run may use


@dataclass(frozen=True)
class Cost:
    """What a training step of one process needs.

    Attributes:
        encoder_parameters: number of parameters of the encoder.
        projector_parameters: number of parameters of the projector.
        flops: operations of forward and backward for both views of an image; a multiply-add counts as two.
        weights: bytes of parameters and buffers.
        gradients: bytes of the gradients.
        optimizer: bytes of the state of the optimizer.
        per_pair: bytes for each image of this process: its two views and their activations.
        constant: bytes that do not grow with the batch, mainly the blocks of the loss.
        measured: True: bytes read from the allocator of the GPU. False: bytes of the tensors that autograd saves.
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
        """Return the peak memory in bytes of a step with ``pairs`` images in this process."""
        return self.weights + self.gradients + self.optimizer + self.constant + pairs * self.per_pair


def measure_cost(module: SimCLR, *, size: int, device: torch.device, context: Context = nullcontext) -> Cost:
    """Return what a training step needs, measured on a copy with a few random images.

    Args:
        module: copied; it does not change.
        size: side of a view in pixels.
        device: where training will run; on CUDA the peak of the allocator is measured.
        context: makes the autocast context of the precision.
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
    """Return the operations of forward and backward for both views of one image, without those of the loss.

    Matrix products and convolutions are counted, from their shapes. The gradients stay in the module.
    """
    with FlopCounterMode(display=False) as counter:
        time_step(module, COUNTED[0], size, device, context)
    return float(counter.get_total_flops() / COUNTED[0])


def largest_batch(cost: Cost, free: float) -> int:
    """Return how many images per step and process fit into `USABLE` of ``free`` bytes; 0 if not even the weights do."""
    left = USABLE * free - cost.bytes(0)
    return max(0, int(left / cost.per_pair))


def free_bytes(device: torch.device) -> int:
    """Return the free memory in bytes: of a GPU, or for a CPU of this machine within the limit of its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.free_memory()


def _saved_bytes(module: SimCLR, pairs: int, size: int, device: torch.device, context: Context) -> float:
    """Return the bytes of the views and of all tensors that autograd saves, without parameters and buffers."""
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # shares the storage, so that its address is not used again

    x_a, x_b = views(pairs, size, device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), context():
        loss = module.contrast(x_a, x_b).loss
    del loss
    return float(sum(saved.values()) + x_a.nbytes + x_b.nbytes)


def _peak_bytes(module: SimCLR, pairs: int, size: int, device: torch.device, context: Context) -> float:
    """Return by how many bytes the peak of the allocator in forward and backward exceeds the memory before."""
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
