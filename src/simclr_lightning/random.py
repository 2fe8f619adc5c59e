"""Draw uniform random numbers without a generator: each number is a hash of its key.

The key is (seed, epoch, sample index, view, operation, position). So a number does not depend on the batch, on loader
workers, on the device or on earlier draws, and a resumed run draws the numbers of the uninterrupted run. The hash is
integer arithmetic modulo 2**64, equal on every device. No global generator is read or changed.

Shapes: N samples, C numbers per sample.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["generator_seed", "permutation", "uniform", "uniform_blocks", "uniforms"]

_MASK = (1 << 64) - 1
# 2**64 divided by the golden ratio, made odd: its multiples modulo 2**64 are evenly spaced.
_WEYL = 0x9E3779B97F4A7C15
# Multipliers and shifts of a published 64-bit finalizer (D. Stafford's "variant 13" for MurmurHash3). Flipping an input
# bit flips each output bit with a probability within 1 % of one half.
_MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFT = (30, 27, 31)
_ORDER_STREAM = 0x6F72646572  # the key of `permutation`, which no view has
_GENERATOR_STREAM = 0x67656E  # the key of `generator_seed`, which is no operation of a view


def _signed(value: int) -> int:
    """Return the number in the int64 range that has the same lowest 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    """Mix the bits of a 64-bit number, one-to-one; `_mix_` does the same to a tensor."""
    value &= _MASK
    value = (value ^ (value >> _SHIFT[0])) * _MULTIPLY[0] & _MASK
    value = (value ^ (value >> _SHIFT[1])) * _MULTIPLY[1] & _MASK
    return value ^ (value >> _SHIFT[2])


def _mix_(x: Tensor) -> Tensor:
    """Mix the bits of every number of an int64 tensor in place; masks make the arithmetic shifts logical."""
    scratch = torch.empty_like(x)
    for shift, multiply in zip(_SHIFT, (*_MULTIPLY, 1), strict=True):
        torch.bitwise_right_shift(x, shift, out=scratch)
        x.bitwise_xor_(scratch.bitwise_and_((1 << (64 - shift)) - 1))
        if multiply != 1:
            x.mul_(_signed(multiply))
    return x


@lru_cache(maxsize=1024)
def _stream(*keys: int) -> int:
    """Hash the keys into one 64-bit number; it depends on their order."""
    word = 0
    for key in keys:
        word = _mix(_mix(word + _WEYL) ^ (key & _MASK))
    return word


def uniform_blocks(
    blocks: Sequence[tuple[int, int, int]], *, seed: int, epoch: int, indices: Tensor
) -> tuple[Tensor, ...]:
    """Draw several blocks of uniform numbers at once.

    Args:
        blocks: (view, operation, count) of each block.
        seed: the seed of the run, any integer; only its lowest 64 bits are used.
        epoch: the number of the epoch, any integer.
        indices: (N,) int64, the positions of the samples in the data set.

    Returns:
        One (N, count) float32 tensor for each block, in [0, 1), on the device of `indices`; equal to the result of
        `uniforms` for its view and operation.

    Raises:
        ValueError: `indices` is not a one-dimensional int64 tensor.
    """
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise ValueError(
            f"indices must be a one-dimensional int64 tensor, not {indices.dtype} of shape {tuple(indices.shape)}"
        )
    start_B, owner_C, step_C = (x.to(indices.device) for x in _layout(tuple(blocks), seed, epoch))
    word_NB = _mix_(indices[:, None] * _signed(_WEYL) + start_B)
    word_NC = _mix_(word_NB.index_select(1, owner_C).add_(step_C))
    # Use the top 24 bits: more bits could round up to 1 in float32.
    top_NC = word_NC.bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1)
    blocks_NC: tuple[Tensor, ...] = top_NC.to(torch.float32).mul_(2.0**-24).split([c for _, _, c in blocks], dim=1)
    return blocks_NC


@lru_cache(maxsize=64)
def _layout(blocks: tuple[tuple[int, int, int], ...], seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the streams of all blocks (B,), and the block and the step of every column (C,), for one epoch."""
    starts = [_signed(_stream(seed, epoch, view, operation)) for view, operation, _ in blocks]
    owners = [block for block, (_, _, count) in enumerate(blocks) for _ in range(count)]
    steps = [_signed(_WEYL * (position + 1)) for _, _, count in blocks for position in range(count)]
    return tuple(torch.tensor(x, dtype=torch.int64, device="cpu") for x in (starts, owners, steps))  # type: ignore[return-value]


def uniforms(count: int, *, seed: int, epoch: int, indices: Tensor, view: int, operation: int) -> Tensor:
    """Draw (N, count) float32 numbers, uniform in [0, 1), on the device of `indices`.

    Args:
        count: numbers per sample; a larger count only appends columns.
        seed: the seed of the run, any integer; only its lowest 64 bits are used.
        epoch: the number of the epoch, any integer.
        indices: (N,) int64, the positions of the samples in the data set.
        view: the key of the view, any integer.
        operation: the key of the operation, any integer.

    Returns:
        (N, count) float32, multiples of 2**-24. Row i depends only on (seed, epoch, indices[i], view, operation), and
        is equal bit for bit on every device.

    Raises:
        ValueError: `indices` is not a one-dimensional int64 tensor.

    >>> uniforms(3, seed=0, epoch=0, indices=torch.tensor([5, 9]), view=0, operation=0).shape
    torch.Size([2, 3])
    """
    return uniform_blocks([(view, operation, count)], seed=seed, epoch=epoch, indices=indices)[0]


def uniform(position: int, *, seed: int, epoch: int, index: int, view: int, operation: int) -> float:
    """Draw the number of `uniforms` for sample `index` in column `position`; for few numbers, faster than a tensor."""
    word = _mix(_stream(seed, epoch, view, operation) + index * _WEYL)
    return (_mix(word + (position + 1) * _WEYL) >> 40) * 2.0**-24


def generator_seed(*, seed: int, epoch: int, index: int, view: int) -> int:
    """Return a seed in [0, 2**64) for the random generators of other libraries: a hash of its key."""
    return _mix(_stream(seed, epoch, view, _GENERATOR_STREAM) + index * _WEYL)


def permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of the n samples in an epoch: 0 to n-1, sorted by their hashes, (n,) int64 on the CPU.

    Raises:
        ValueError: n is below 0.

    >>> permutation(4, seed=0, epoch=0).sort().values
    tensor([0, 1, 2, 3])
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, not {n}")
    word_n = _mix_(torch.arange(n) * _signed(_WEYL) + _signed(_stream(seed, epoch, _ORDER_STREAM)))
    # Different numbers have different hashes (each step is one-to-one), so there are no ties.
    return torch.argsort(word_n, stable=True)
