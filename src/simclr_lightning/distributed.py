"""Who this process is among the others, and the gathers that NT-Xent needs.

Everything works with one process too, without an initialised process group: rank 0 of 1, and a gather that
returns what it was given. Nothing here is differentiable, and nothing here is called in a backward pass.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialised() -> bool:
    """Whether a process group exists in this process."""
    return dist.is_available() and dist.is_initialized()


def rank(group: dist.ProcessGroup | None = None) -> int:
    """The place of this process in ``group`` (default: all processes), from 0; 0 without a process group.

    Raises:
        ValueError: this process does not belong to ``group``.
    """
    return _member(dist.get_rank(group)) if is_initialised() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """The number of processes in ``group`` (default: all processes); 1 without a process group.

    Raises:
        ValueError: this process does not belong to ``group``.
    """
    return _member(dist.get_world_size(group)) if is_initialised() else 1


def gather_sizes(size: int, *, device: torch.device, group: dist.ProcessGroup | None = None) -> list[int]:
    """Every rank's ``size``, in rank order: one all-gather of a single int64 a rank.

    ``device`` is where the communication runs: a GPU for NCCL, the CPU for gloo. The host waits for it.
    """
    world = world_size(group)
    if world == 1:
        return [size]
    sizes_W = torch.empty(world, dtype=torch.int64, device=device)
    own_1 = torch.full((1,), size, dtype=torch.int64, device=device)
    dist.all_gather([sizes_W[i : i + 1] for i in range(world)], own_1, group=group)
    return [int(value) for value in sizes_W.tolist()]


def gather_rows(x_VnR: Tensor, sizes: Sequence[int], *, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of every rank, joined in rank order along dimension 1: (V, n, ...) -> (V, sum(sizes), ...).

    Args:
        x_VnR: this rank's rows, n = ``sizes[rank]`` of them along dimension 1; the others agree everywhere.
        sizes: the number of rows of each rank, as ``gather_sizes`` gives them. They may differ: the shorter
            ranks send padding, which is dropped on arrival, so the result is exact.
        group: the process group; all processes by default.

    Returns:
        A new tensor, or ``x_VnR`` itself where there is only one process.
    """
    if len(sizes) == 1:
        return x_VnR
    assert x_VnR.shape[1] == sizes[rank(group)], "the rows sent must be as many as were announced"
    longest = max(sizes)
    padded_VLR = x_VnR.new_zeros((x_VnR.shape[0], longest, *x_VnR.shape[2:]))
    padded_VLR[:, : x_VnR.shape[1]] = x_VnR
    parts_WVLR = x_VnR.new_empty((len(sizes), *padded_VLR.shape))
    # The list form, into views of one tensor: it warns on no version of torch, and copies nothing twice.
    dist.all_gather(list(parts_WVLR.unbind(0)), padded_VLR, group=group)
    return torch.cat([part[:, :size] for part, size in zip(parts_WVLR, sizes, strict=True)], dim=1)


def _member(answer: int) -> int:
    """Torch answers -1 to a process that is not in the group."""
    if answer < 0:
        raise ValueError("this process is not a member of the group: pass a group that holds it, or group=None")
    return answer
