"""Random numbers without a state: a key goes in, a uniform number comes out.

Every number is a hash of (seed, epoch, sample index, view, operation, position), so it does not depend on the batch a
sample stands in, on workers, devices, or on what was drawn before; a resumed run draws what the first one would have.
The hash is integer arithmetic modulo 2**64, the same on every device, and no global generator is read or moved.

Shapes: N samples, C numbers a sample.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["permutation", "uniform", "uniform_blocks", "uniforms"]

_MASK = (1 << 64) - 1
# 2**64 divided by the golden ratio, made odd: its multiples are spread evenly over the ring of 64-bit integers.
_WEYL = 0x9E3779B97F4A7C15
# Multipliers and shifts of a published 64-bit finaliser ("variant 13" of MurmurHash3's, by D. Stafford): each input
# bit flips each output bit with a probability within 1 % of one half.
_MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFT = (30, 27, 31)
_ORDER_STREAM = 0x6F72646572  # keeps the order of an epoch apart from the views' numbers


def _signed(value: int) -> int:
    """Return the same 64 bits as torch's int64 reads them."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    """Mix 64 bits; a bijection, equal to `_mix_` on a tensor."""
    value &= _MASK
    value = (value ^ (value >> _SHIFT[0])) * _MULTIPLY[0] & _MASK
    value = (value ^ (value >> _SHIFT[1])) * _MULTIPLY[1] & _MASK
    return value ^ (value >> _SHIFT[2])


def _mix_(x: Tensor) -> Tensor:
    """Mix an int64 tensor of 64-bit words in place; the shifts are logical, so the copied sign bits are masked off."""
    scratch = torch.empty_like(x)
    for shift, multiply in zip(_SHIFT, (*_MULTIPLY, 1), strict=True):
        torch.bitwise_right_shift(x, shift, out=scratch)
        x.bitwise_xor_(scratch.bitwise_and_((1 << (64 - shift)) - 1))
        if multiply != 1:
            x.mul_(_signed(multiply))
    return x


@lru_cache(maxsize=1024)
def _stream(*keys: int) -> int:
    """Chain the keys into one 64-bit word; each is mixed before the next arrives, so (1, 2) and (2, 1) differ."""
    word = 0
    for key in keys:
        word = _mix(_mix(word + _WEYL) ^ (key & _MASK))
    return word


def uniform_blocks(
    blocks: Sequence[tuple[int, int, int]], *, seed: int, epoch: int, indices: Tensor
) -> tuple[Tensor, ...]:
    """Draw several blocks of uniform numbers in one pass.

    Args:
        blocks: (view, operation, count) for each block.
        seed: the run's seed, any integer; its lowest 64 bits count.
        epoch: the epoch, any integer.
        indices: (N,) int64, the samples' indices in the data set.

    Returns:
        One (N, count) float32 tensor for each block, in [0, 1), on the device of `indices`; each equals what
        `uniforms` gives for its view and operation.
    """
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise ValueError(
            f"indices must be a one-dimensional int64 tensor, not {indices.dtype} of shape {tuple(indices.shape)}"
        )
    start_B, owner_C, step_C = (x.to(indices.device) for x in _layout(tuple(blocks), seed, epoch))
    word_NB = _mix_(indices[:, None] * _signed(_WEYL) + start_B)
    word_NC = _mix_(word_NB.index_select(1, owner_C).add_(step_C))
    # The top 24 bits: all that a float32 in [0, 1) can hold without rounding up to 1.
    top_NC = word_NC.bitwise_right_shift_(40).bitwise_and_((1 << 24) - 1)
    blocks_NC: tuple[Tensor, ...] = top_NC.to(torch.float32).mul_(2.0**-24).split([c for _, _, c in blocks], dim=1)
    return blocks_NC


@lru_cache(maxsize=64)
def _layout(blocks: tuple[tuple[int, int, int], ...], seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what all samples of an epoch share: the blocks' streams (B,), each column's block and position (C,)."""
    starts = [_signed(_stream(seed, epoch, view, operation)) for view, operation, _ in blocks]
    owners = [block for block, (_, _, count) in enumerate(blocks) for _ in range(count)]
    steps = [_signed(_WEYL * (position + 1)) for _, _, count in blocks for position in range(count)]
    return tuple(torch.tensor(x, dtype=torch.int64, device="cpu") for x in (starts, owners, steps))  # type: ignore[return-value]


def uniforms(count: int, *, seed: int, epoch: int, indices: Tensor, view: int, operation: int) -> Tensor:
    """Draw (N, count) float32 numbers, uniform in [0, 1), on the device of `indices`.

    Args:
        count: numbers for each sample; the first k do not depend on it.
        seed: the run's seed, any integer; its lowest 64 bits count.
        epoch: the epoch, any integer.
        indices: (N,) int64, the samples' indices in the data set.
        view: which view of the sample, any integer.
        operation: which operation of the view, any integer.

    Returns:
        (N, count) float32, multiples of 2**-24: row i is a function of (seed, epoch, indices[i], view, operation)
        alone, bit for bit the same on every device.
    """
    return uniform_blocks([(view, operation, count)], seed=seed, epoch=epoch, indices=indices)[0]


def uniform(position: int, *, seed: int, epoch: int, index: int, view: int, operation: int) -> float:
    """Draw one number of `uniforms`, row `index`, column `position`, exactly; for a few, faster than a tensor."""
    word = _mix(_stream(seed, epoch, view, operation) + index * _WEYL)
    return (_mix(word + (position + 1) * _WEYL) >> 40) * 2.0**-24


def permutation(n: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch: the numbers 0 to n-1 sorted by their 64-bit hash, (n,) int64 on the CPU."""
    if n < 0:
        raise ValueError(f"n must be at least 0, not {n}")
    word_n = _mix_(torch.arange(n) * _signed(_WEYL) + _signed(_stream(seed, epoch, _ORDER_STREAM)))
    # Distinct numbers have distinct hashes (each step is a bijection), so there are no ties to break.
    return torch.argsort(word_n, stable=True)
