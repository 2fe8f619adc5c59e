"""Return the rank and the world size, and gather rows of different numbers from all ranks.

All functions also work in a single process without a process group: it is rank 0 of 1, and gathering returns its input.
No function is differentiable, and none is called in a backward pass.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    """Return whether this process has an initialized process group."""
    return dist.is_available() and dist.is_initialized()


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Return the rank of this process in ``group`` (None: all processes), from 0; 0 without a process group.

    Raises:
        ValueError: this process does not belong to ``group``.
    """
    return _checked(dist.get_rank(group)) if is_initialized() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Return the number of processes in ``group`` (None: all processes); 1 without a process group.

    Raises:
        ValueError: this process does not belong to ``group``.
    """
    return _checked(dist.get_world_size(group)) if is_initialized() else 1


def gather_sizes(size: int, *, device: torch.device, group: dist.ProcessGroup | None = None) -> list[int]:
    """Return the ``size`` of every rank, in rank order, from one all-gather of an int64 per rank.

    Args:
        size: the number that this rank sends, for example of its rows.
        device: the device that communicates: a GPU for NCCL, the CPU for gloo. The host waits for it.
        group: the process group; None for all processes.

    Raises:
        ValueError: this process does not belong to ``group``.
    """
    world = world_size(group)
    if world == 1:
        return [size]
    sizes_W = torch.empty(world, dtype=torch.int64, device=device)
    own_1 = torch.full((1,), size, dtype=torch.int64, device=device)
    dist.all_gather([sizes_W[i : i + 1] for i in range(world)], own_1, group=group)
    return [int(value) for value in sizes_W.tolist()]


def gather_rows(x_VnR: Tensor, sizes: Sequence[int], *, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate the rows of all ranks in rank order along dimension 1: (V, n, ...) to (V, sum(sizes), ...).

    Args:
        x_VnR: the rows of this rank along dimension 1, n = ``sizes[rank]``. The other dimensions and the dtype must be
            the same on all ranks.
        sizes: the number of rows of each rank, from ``gather_sizes``. They may differ: ranks with fewer rows send
            padding, which the receivers drop.
        group: the process group; None for all processes.

    Returns:
        A new tensor, or ``x_VnR`` itself if there is only one process.
    """
    if len(sizes) == 1:
        return x_VnR
    assert x_VnR.shape[1] == sizes[rank(group)], "sizes[rank] must be the number of rows of this rank"
    longest = max(sizes)
    padded_VLR = x_VnR.new_zeros((x_VnR.shape[0], longest, *x_VnR.shape[2:]))
    padded_VLR[:, : x_VnR.shape[1]] = x_VnR
    parts_WVLR = x_VnR.new_empty((len(sizes), *padded_VLR.shape))
    # The list form of all_gather warns in no version of torch. Its outputs are views of one tensor, without a copy.
    dist.all_gather(list(parts_WVLR.unbind(0)), padded_VLR, group=group)
    return torch.cat([part[:, :size] for part, size in zip(parts_WVLR, sizes, strict=True)], dim=1)


def _checked(number: int) -> int:
    """Return torch's rank or world size; raise ValueError if it is -1, for a process outside of the group."""
    if number < 0:
        raise ValueError("this process is not a member of the group; pass a group that includes it, or group=None")
    return number
