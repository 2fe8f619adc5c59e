"""Hashed random numbers: uniform, independent along every key, and independent of their batch."""

import pytest
import torch
from scipy import stats

from simclr_lightning.random import permutation, uniform, uniform_blocks, uniforms

KEYS = {"seed": 3, "epoch": 5, "view": 1, "operation": 2}
MASK = (1 << 64) - 1


def draw(count: int = 1, n: int = 20_000, **keys: int) -> torch.Tensor:
    return uniforms(count, indices=torch.arange(n), **(KEYS | keys))


def reference(position: int, *, seed: int, epoch: int, index: int, view: int, operation: int) -> float:
    """Return the documented hash, computed in Python integers."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    weyl = 0x9E3779B97F4A7C15
    word = 0
    for key in (seed, epoch, view, operation):
        word = mix(mix((word + weyl) & MASK) ^ (key & MASK))
    word = mix((word + index * weyl) & MASK)
    return (mix((word + (position + 1) * weyl) & MASK) >> 40) / 2**24


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 + 11, 2**80 + 1])
def test_equals_the_hash_in_python_integers(seed: int) -> None:
    indices = torch.tensor([0, 1, 49_999, 2**40 + 3, -5])
    got = uniforms(4, seed=seed, epoch=2, indices=indices, view=1, operation=3)
    for row, index in enumerate(indices.tolist()):
        for position in range(4):
            want = reference(position, seed=seed, epoch=2, index=index, view=1, operation=3)
            assert got[row, position].item() == want
            assert uniform(position, seed=seed, epoch=2, index=index, view=1, operation=3) == want


def test_range_dtype_and_shape() -> None:
    u = draw(64)
    assert u.shape == (20_000, 64)
    assert u.dtype == torch.float32
    assert 0.0 <= u.min().item() < 1e-5
    assert 1.0 - 1e-5 < u.max().item() < 1.0


@pytest.mark.parametrize("along", ["index", "position", "seed", "epoch", "view", "operation"])
def test_uniform_and_independent_along_each_key(along: str) -> None:
    n = 4096
    if along == "index":
        u = draw(1, n)[:, 0]
    elif along == "position":
        u = draw(n, 1)[0]
    else:
        u = torch.cat([draw(1, 1, **{along: value})[0] for value in range(n)])
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    # Successive numbers as points of a 16 x 16 grid are uniform only if they are independent.
    cell = (u[0::2] * 16).long() * 16 + (u[1::2] * 16).long()
    assert stats.chisquare(cell.bincount(minlength=256).numpy()).pvalue > 1e-3
    for lag in (1, 2, 7):
        assert abs(torch.corrcoef(torch.stack([u[:-lag], u[lag:]]))[0, 1].item()) < 4.5 / n**0.5


def test_columns_of_all_keys_are_uncorrelated() -> None:
    columns = [draw(3, **{key: value}) for key in KEYS for value in (100, 101, 1 << 33)]
    correlation = torch.corrcoef(torch.cat(columns, dim=1).T)
    assert (correlation - torch.eye(len(correlation))).abs().max().item() < 5.0 / 20_000**0.5


@pytest.mark.parametrize("key", ["seed", "epoch", "view", "operation", "index"])
def test_flipping_one_bit_of_a_key_flips_half_of_the_bits(key: str) -> None:
    def bits(delta: int) -> torch.Tensor:
        keys = dict(KEYS)
        indices = torch.arange(2000)
        if key == "index":
            indices = indices ^ delta
        else:
            keys[key] ^= delta
        word = (uniforms(2, indices=indices, **keys) * 2**24).long()
        return (word[..., None] >> torch.arange(24)) & 1

    plain = bits(0)
    for bit in (0, 1, 5, 17, 31, 40, 62):
        flipped = (bits(1 << bit) != plain).double().mean(dim=(0, 1))  # for each of the 24 output bits
        assert (flipped - 0.5).abs().max().item() < 0.04, (key, bit)  # 5 standard deviations of 4000 coin flips


def test_keys_do_not_swap() -> None:
    assert not torch.equal(draw(seed=1, epoch=2), draw(seed=2, epoch=1))
    assert not torch.equal(draw(view=1, operation=0), draw(view=0, operation=1))
    assert not torch.equal(draw(seed=0, epoch=0, view=0, operation=1), draw(seed=0, epoch=0, view=1, operation=0))


def test_a_row_depends_on_its_index_alone() -> None:
    whole = draw(5, 1000)
    picked = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:77]
    assert torch.equal(uniforms(5, indices=picked, **KEYS), whole[picked])
    assert torch.equal(draw(2, 1000), whole[:, :2])  # a larger count only appends columns


def test_blocks_equal_single_draws() -> None:
    indices = torch.arange(50)
    blocks = [(0, 4, 3), (1, 4, 1), (1, 0, 7)]
    got = uniform_blocks(blocks, seed=9, epoch=8, indices=indices)
    for (view, operation, count), block in zip(blocks, got, strict=True):
        single = uniforms(count, seed=9, epoch=8, indices=indices, view=view, operation=operation)
        assert torch.equal(block, single)


def test_no_global_generator_is_read_or_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(2)
    order = permutation(100, seed=1, epoch=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(2), first)
    assert torch.equal(permutation(100, seed=1, epoch=1), order)


def test_wrong_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="indices must be a one-dimensional int64"):
        uniforms(1, indices=torch.arange(3, dtype=torch.int32), **KEYS)
    with pytest.raises(ValueError, match="indices must be a one-dimensional int64"):
        uniforms(1, indices=torch.zeros(2, 2, dtype=torch.int64), **KEYS)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_every_number_once(n: int) -> None:
    order = permutation(n, seed=3, epoch=4)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


def test_permutations_differ_by_seed_and_epoch_and_are_fair() -> None:
    orders = torch.stack([permutation(6, seed=s, epoch=e) for s in range(60) for e in range(60)])
    number = (orders * 6 ** torch.arange(6)).sum(dim=1)
    counts = number.unique(return_counts=True)[1]
    assert len(counts) > 700  # 720 orders, 3600 draws: 5 expected in each
    assert stats.chisquare(torch.nn.functional.pad(counts, (0, 720 - len(counts))).numpy()).pvalue > 1e-3


def test_permutation_refuses_a_negative_number() -> None:
    with pytest.raises(ValueError, match="n must be at least 0"):
        permutation(-1, seed=0, epoch=0)
