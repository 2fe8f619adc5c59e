"""Compare ten steps of gradient caching, on one process and on two, with those of the plain large batch."""

from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simclr_lightning.caching import cached_projections, micro_batches
from simclr_lightning.ntxent import NTXent
from simclr_lightning.optim import LARS, parameter_groups

BATCH, STEPS = 24, 10
MICRO = (4, 12, 24)
STATIC = (False, True)


def smooth(*extra: nn.Module) -> nn.Sequential:
    """Return a network without BatchNorm, in float64, so that rounding does not hide an error."""
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 5, 3), nn.Tanh(), *extra, nn.Flatten(), nn.Linear(5 * 36, 7))
    return nn.Sequential(*layers).double()


def views(step: int) -> tuple[Tensor, Tensor]:
    """Return two views of the images of a step, each (BATCH, 3, 8, 8)."""
    draw = torch.Generator().manual_seed(step)
    x = torch.rand(BATCH, 3, 8, 8, generator=draw, dtype=torch.float64)
    noise = torch.rand(2, BATCH, 3, 8, 8, generator=draw, dtype=torch.float64)
    return x + noise[0], x + noise[1]


class Plain(nn.Module):
    """Return the loss of the large batch: both views in one forward pass, with all activations stored."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.loss = NTXent(0.2)

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        loss: Tensor = self.loss(*self.network(torch.cat((x_a, x_b))).chunk(2)).loss
        return loss


class Cached(Plain):
    """Return the same loss by gradient caching, in several parts."""

    def __init__(self, network: nn.Module, parts: int) -> None:
        super().__init__(network)
        self.parts = parts

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        parts = micro_batches(len(x_a), self.parts)
        z = cached_projections(self.network, self.network, lambda rows: (x_a[rows], x_b[rows]), parts)
        loss: Tensor = self.loss(*z).loss
        return loss


def train(step: nn.Module, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Return the weights after ten steps of LARS on some rows of each batch."""
    optimizer = LARS(parameter_groups(step), lr=20.0, weight_decay=1e-4)
    for number in range(STEPS):
        x_a, x_b = views(number)
        optimizer.zero_grad()
        step(x_a[rows], x_b[rows]).backward()
        optimizer.step()
    return {name.removeprefix("module."): value.detach().clone() for name, value in step.named_parameters()}


def close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert (got[name] - want[name]).norm() <= tolerance * want[name].norm(), name


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """Return the weights after ten plain steps on one process."""
    start = {name: value.clone() for name, value in Plain(smooth()).named_parameters()}
    weights = train(Plain(smooth()))
    assert all((weights[name] - start[name]).norm() > 0.02 * start[name].norm() for name in weights)
    return weights


@pytest.mark.parametrize("micro", [2, *MICRO])
def test_ten_steps_are_those_of_the_large_batch(micro: int, whole: dict[str, Tensor]) -> None:
    close(train(Cached(smooth(), BATCH // micro)), whole, 1e-12)


def test_a_mean_over_micro_batches_is_something_else(whole: dict[str, Tensor]) -> None:
    """Accumulated gradients, which use only the negatives of a micro-batch, would fail the test above."""

    class Accumulated(Plain):
        def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
            parts = [super(Accumulated, self).forward(x_a[p], x_b[p]) for p in micro_batches(BATCH, 6)]
            return torch.stack(parts).mean()

    got = train(Accumulated(smooth()))
    assert all((got[name] - whole[name]).norm() > 1e-3 * whole[name].norm() for name in whole)


def work(rank: int, world: int, folder: str) -> None:
    """Run one process and save its results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    reduced: list[int] = []

    def count(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations as objects
        reduced.append(bucket.buffer().numel())
        done = dist.all_reduce(bucket.buffer().div_(world), async_op=True)
        return done.get_future().then(lambda future: future.value()[0])

    result: dict[Any, Any] = {}
    for micro, static in itertools.product(MICRO, STATIC):
        network = Cached(smooth(), BATCH // micro)
        ddp = DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=static)
        ddp.register_comm_hook(None, count)
        reduced.clear()
        result[micro, static] = train(ddp, share), list(reduced)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder: Path = tmp_path_factory.mktemp("caching")
    multiprocessing.set_forkserver_preload(["torch.distributed", "simclr_lightning.ntxent"])
    mp.start_processes(work, args=(2, str(folder)), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("static", STATIC)
@pytest.mark.parametrize("micro", MICRO)
def test_two_processes_are_the_large_batch_of_one(
    ranks: list[dict[Any, Any]], micro: int, static: bool, whole: dict[str, Tensor]
) -> None:
    for rank in ranks:
        close(rank[micro, static][0], whole, 1e-12)


@pytest.mark.parametrize("static", STATIC)
@pytest.mark.parametrize("micro", MICRO)
def test_every_gradient_is_reduced_once_a_step(ranks: list[dict[Any, Any]], micro: int, static: bool) -> None:
    size = sum(p.numel() for p in smooth().parameters())
    for rank in ranks:
        assert rank[micro, static][1] == [size] * STEPS  # all parameters fit one bucket
