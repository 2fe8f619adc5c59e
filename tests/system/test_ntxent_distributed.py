"""Compare NT-Xent on 2 and 4 gloo processes with NT-Xent on one process, and count what is sent."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simclr_lightning import distributed
from simclr_lightning.ntxent import NTXent, NTXentOutput, blocks, dcl, debiased, nt_xent, sup_con

TEMPERATURES = (0.01, 0.2)  # with a running maximum, and without
# Pairs per rank. 80 pairs are more than SMALL_BATCH, so float32 inputs are computed in float32.
SHARES = {
    2: {"equal": (3, 3), "unequal": (5, 2), "large": (47, 33)},
    4: {"equal": (2, 2, 2, 2), "unequal": (3, 0, 5, 1), "large": (20, 31, 2, 27)},
}

# The relatives of NT-Xent, of (z_a, z_b, labels).
FAMILY: dict[str, Callable[[Tensor, Tensor, Tensor], NTXentOutput]] = {
    "dclw": lambda z_a, z_b, y: dcl(z_a, z_b, 0.2, sigma=0.5),
    "debiased": lambda z_a, z_b, y: debiased(z_a, z_b, 0.5, tau_plus=0.1),
    "hard": lambda z_a, z_b, y: debiased(z_a, z_b, 0.5, tau_plus=0.1, beta=0.7),
    "sup_con": lambda z_a, z_b, y: sup_con(z_a, z_b, y, 0.2),
}


def views(pairs: int, width: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(pairs)
    x_a, x_b = torch.randn(2, pairs, width, generator=draw, dtype=torch.float64)
    return x_a, x_b


def network() -> nn.Module:
    """Return encoder and projector without BatchNorm, whose statistics would differ from those of one process."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()


def step(model: nn.Module, x_a: Tensor, x_b: Tensor, temperature: float) -> dict[str, Tensor]:
    """Make one optimizer step, with both views in one forward pass; return gradients and new weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    z_a, z_b = model(torch.cat([x_a, x_b])).tensor_split(2)
    NTXent(temperature)(z_a, z_b).loss.backward()
    names = [name.removeprefix("module.") for name, _ in model.named_parameters()]
    result = {f"grad {name}": p.grad.clone() for name, p in zip(names, model.parameters(), strict=True)}
    optimizer.step()
    return result | {f"weight {name}": p.detach() for name, p in zip(names, model.parameters(), strict=True)}


def labels(pairs: int) -> Tensor:
    return torch.arange(pairs) % 4 - 1  # classes 0 to 2, and images without a label


def measure(x_a: Tensor, x_b: Tensor, temperature: float, **options: Any) -> dict[str, Tensor]:
    return derived(x_a, x_b, lambda z_a, z_b: nt_xent(z_a, z_b, temperature, **options))


def derived(x_a: Tensor, x_b: Tensor, loss: Callable[[Tensor, Tensor], NTXentOutput]) -> dict[str, Tensor]:
    z_a, z_b = x_a.clone().requires_grad_(), x_b.clone().requires_grad_()
    output = loss(z_a, z_b)
    g_a, g_b = torch.autograd.grad(output.loss, (z_a, z_b))
    return {**{k: v.detach() for k, v in output._asdict().items()}, "g_a": g_a, "g_b": g_b}


@contextmanager
def counted() -> Iterator[list[tuple[str, int]]]:
    """Record every collective in the body, with the bytes that this rank sends."""
    sent: list[tuple[str, int]] = []
    words = ("all", "reduce", "broadcast", "gather", "scatter", "send", "recv")
    originals = {n: x for n, x in vars(dist.ProcessGroup).items() if any(word in n for word in words)}

    def watch(name: str) -> Any:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            # The last list of tensors is sent; the lists before it receive.
            own = next(x for x in reversed(args) if isinstance(x, list))
            sent.append((name, sum(x.nbytes for x in own)))
            return originals[name].__get__(group)(*args, **kwargs)

        return call

    for name in originals:
        setattr(dist.ProcessGroup, name, watch(name))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist.ProcessGroup, name, original)


def traffic(x_a: Tensor, x_b: Tensor) -> dict[str, Any]:
    z_a, z_b = x_a.clone().requires_grad_(), x_b.clone().requires_grad_()
    with counted() as forward:
        loss = nt_xent(z_a, z_b, 0.2).loss
    with counted() as backward:
        loss.backward()
    return {"forward": forward, "backward": backward}


def work(rank: int, world: int, folder: str) -> None:
    """Run one process and save its results to a file."""
    torch.set_num_threads(1)
    blocks.BLOCK_SIDES["cpu"] = {10**9: 16}  # several blocks, which do not end where ranks do
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    result: dict[Any, Any] = {"rank": (distributed.rank(), distributed.world_size())}
    for name, sizes in SHARES[world].items():
        x_a, x_b = (x.split(sizes)[rank] for x in views(sum(sizes)))
        for temperature in TEMPERATURES:
            result[name, temperature] = measure(x_a, x_b, temperature)
            result[name, temperature, "float32"] = measure(x_a.float(), x_b.float(), temperature)
            ddp = DistributedDataParallel(network())
            result[name, temperature, "step"] = step(ddp, x_a, x_b, temperature)
        y = labels(sum(sizes)).split(sizes)[rank]
        for member, loss in FAMILY.items():
            result[name, member] = derived(x_a, x_b, partial(loss, y=y))
        if sizes[rank]:
            result[name, "alone"] = measure(x_a, x_b, 0.2, gather=False)
        result[name, "traffic"] = traffic(x_a, x_b)
    for first in range(0, world, 2):  # every rank must take part in creating every group
        group = dist.new_group([first, first + 1])
        x_a, x_b = (x.split(SHARES[world]["large"])[rank] for x in views(80))
        if rank in (first, first + 1):
            result["group"] = measure(x_a, x_b, 0.2, group=group)
        else:
            with pytest.raises(ValueError, match="not a member"):
                nt_xent(x_a, x_b, 0.2, group=group)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    world = request.param
    folder: Path = tmp_path_factory.mktemp(f"world{world}")
    # One server imports torch once and forks every process.
    multiprocessing.set_forkserver_preload(["torch.distributed", "simclr_lightning.ntxent"])
    mp.start_processes(work, args=(world, str(folder)), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def shares(ranks: list[dict[Any, Any]]) -> dict[str, tuple[int, ...]]:
    return SHARES[len(ranks)]


def joined(ranks: list[dict[Any, Any]], key: Any) -> dict[str, Tensor]:
    """Average the scalars over ranks; concatenate the gradients, divided by the world size as DDP does."""
    results = [r[key] for r in ranks]
    scalars = {k: torch.stack([r[k] for r in results]).mean() for k in results[0] if not k.startswith("g_")}
    return scalars | {k: torch.cat([r[k] for r in results]) / len(ranks) for k in ("g_a", "g_b")}


def same(value: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert value.keys() == expected.keys()
    for name in expected:
        # The error relative to the norm of the tensor, or absolute if the norm is below 1.
        error = (value[name].double() - expected[name]).norm() / max(1.0, float(expected[name].norm()))
        assert error < tolerance, name


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ["equal", "unequal", "large"])
def test_values_and_gradients_are_those_of_one_process(
    ranks: list[dict[Any, Any]], name: str, temperature: float
) -> None:
    x_a, x_b = views(sum(shares(ranks)[name]))
    same(joined(ranks, (name, temperature)), measure(x_a, x_b, temperature))


@pytest.mark.parametrize("member", FAMILY)
@pytest.mark.parametrize("name", ["equal", "unequal", "large"])
def test_the_relatives_too_are_those_of_one_process(ranks: list[dict[Any, Any]], name: str, member: str) -> None:
    x_a, x_b = views(sum(shares(ranks)[name]))
    same(joined(ranks, (name, member)), derived(x_a, x_b, partial(FAMILY[member], y=labels(len(x_a)))))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float32_is_close(ranks: list[dict[Any, Any]], temperature: float) -> None:
    x_a, x_b = views(80)
    expected = measure(x_a, x_b, temperature)
    value = joined(ranks, ("large", temperature, "float32"))
    assert value["g_a"].dtype == value["loss"].dtype == torch.float32
    for name in ("g_a", "g_b"):
        limit = 1e-6 * max(1, 0.05 / temperature)
        assert (value[name].double() - expected[name]).norm() <= limit * expected[name].norm()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ["equal", "unequal", "large"])
def test_a_step_of_ddp_is_a_step_of_one_process(ranks: list[dict[Any, Any]], name: str, temperature: float) -> None:
    x_a, x_b = views(sum(shares(ranks)[name]))
    expected = step(network(), x_a, x_b, temperature)
    assert expected["grad 0.weight"].norm() > 1e-3  # the compared gradients are not 0
    for rank in ranks:
        same(rank[name, temperature, "step"], expected)


@pytest.mark.parametrize("name", ["equal", "unequal"])
def test_gather_false_keeps_to_the_rank(ranks: list[dict[Any, Any]], name: str) -> None:
    sizes = shares(ranks)[name]
    for rank, x_a, x_b in zip(ranks, *(x.split(sizes) for x in views(sum(sizes))), strict=True):
        if len(x_a):
            same(rank[name, "alone"], measure(x_a, x_b, 0.2))


def test_a_group_keeps_to_its_members(ranks: list[dict[Any, Any]]) -> None:
    parts = list(zip(*(x.split(shares(ranks)["large"]) for x in views(80)), strict=True))
    for first in range(0, len(ranks), 2):
        members = slice(first, first + 2)
        x_a, x_b = (torch.cat(x) for x in zip(*parts[members], strict=True))
        same(joined(ranks[members], "group"), measure(x_a, x_b, 0.2))


@pytest.mark.parametrize("name", ["equal", "unequal", "large"])
def test_three_gathers_forward_and_nothing_backward(ranks: list[dict[Any, Any]], name: str) -> None:
    """Gather the sizes, z, and the log-sum-exps of the rows; the last two are padded to the largest local batch."""
    longest = max(shares(ranks)[name])
    for rank in ranks:
        sent = rank[name, "traffic"]
        assert sent["forward"] == [("allgather", size) for size in (8, 2 * longest * 6 * 8, 2 * longest * 8)]
        assert sent["backward"] == []


def test_ranks_know_themselves(ranks: list[dict[Any, Any]]) -> None:
    assert [rank["rank"] for rank in ranks] == [(i, len(ranks)) for i in range(len(ranks))]


def test_one_process_needs_no_group() -> None:
    x = torch.ones(2, 3, 4)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather_sizes(3, device=x.device) == [3]
    assert distributed.gather_rows(x, [3]) is x
