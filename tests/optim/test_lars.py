"""Compare LARS with its definition in naive float64 NumPy, and its interface with an optimizer of torch."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simclr_lightning.optim import LARS, Schedule, parameter_groups

# name -> shape; "zero" starts at zero and has a gradient of zero in the first steps; "still" never has a gradient
SHAPES = {"conv": (4, 3, 3, 3), "dense": (6, 5), "zero": (3, 2), "still": (2, 2), "gamma": (4,), "bias": (6,)}
EXCLUDED = {"gamma", "bias"}


STEPS, WARMUP, BATCH, BASE = 200, 20, 512, 0.3


def closed_lr(step: int) -> float:
    """Return the learning rate of the linear rule with warm-up and cosine decay, from the formula."""
    peak = BASE * BATCH / 256
    if step < WARMUP:
        return peak * step / WARMUP
    return peak * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def naive_lars(
    weights: dict[str, np.ndarray],
    gradient: Callable[[str, np.ndarray, int], np.ndarray],
    *,
    steps: int,
    weight_decay: float,
    momentum: float = 0.9,
    mistake: str | None = None,
) -> dict[str, np.ndarray]:
    """Return weights after LARS by its definition in float64; ``mistake`` adds one seen in another implementation."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    v = {name: np.zeros_like(value) for name, value in w.items()}
    for step in range(steps):
        lr = closed_lr(step // 10 * 10 if mistake == "schedule per epoch" else step)
        if mistake == "no warm-up":
            lr = BASE * BATCH / 256 * (1 + math.cos(math.pi * step / STEPS)) / 2
        for name in w:
            g = gradient(name, w[name], step)
            excluded = name in EXCLUDED and mistake != "no exclusions"
            decayed = g if excluded else g + weight_decay * w[name]
            w_norm, g_norm = np.sqrt((w[name] ** 2).sum()), np.sqrt((decayed**2).sum())
            if mistake == "sum of norms":
                g_norm = np.sqrt((g**2).sum()) + weight_decay * w_norm
            trust = 0.001 * w_norm / g_norm if not excluded and w_norm > 0 and g_norm > 0 else 1.0
            if mistake == "no adaptation at weight decay 0" and weight_decay == 0:
                trust = 1.0
            if mistake == "momentum forgotten":
                v[name] = lr * trust * decayed
                w[name] = w[name] - v[name]
            elif mistake == "lr outside the buffer":
                v[name] = momentum * v[name] + trust * decayed
                w[name] = w[name] - lr * v[name]
            elif mistake == "nesterov":
                v[name] = momentum * v[name] + lr * trust * decayed
                w[name] = w[name] - (momentum * v[name] + lr * trust * decayed)
            else:
                v[name] = momentum * v[name] + lr * trust * decayed
                w[name] = w[name] - v[name]
    return w


def _start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    weights["zero"][:] = 0
    return weights


def _gradient(name: str, w: np.ndarray, step: int) -> np.ndarray:
    """Return a gradient that depends on the weights, so an error at one step changes all later ones."""
    if name == "still":
        return np.zeros_like(w)
    target = np.random.default_rng([step, len(name)]).normal(size=w.shape)
    return np.sin(w) + 0.3 * target if name != "zero" or step >= 3 else np.zeros_like(w)


def _run_lars(weight_decay: float, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return weights after LARS with groups as from ``parameter_groups``, and the package's schedule."""
    params = {name: nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in _start().items()}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in params.items() if name not in EXCLUDED]},
        {"params": [params[name] for name in sorted(EXCLUDED)], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = LARS(groups, lr=BASE, weight_decay=weight_decay)
    scheduler = Schedule(warmup_epochs=2)(optimizer, global_batch_size=BATCH, steps_per_epoch=10, total_steps=STEPS)
    for step in range(STEPS):
        for name, p in params.items():
            p.grad = torch.tensor(_gradient(name, p.detach().double().numpy(), step), dtype=dtype)
        optimizer.step()
        scheduler.step()
    return {name: p.detach().double().numpy() for name, p in params.items()}


def _distance(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """Return the largest difference over all weights, relative to each parameter's largest weight."""
    return max(
        float(np.abs(found[name] - wanted[name]).max() / max(np.abs(wanted[name]).max(), 1e-30)) for name in wanted
    )


@pytest.mark.parametrize("weight_decay", [0.0, 1e-4, 0.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_lars_is_its_definition(weight_decay: float, dtype: torch.dtype, tolerance: float) -> None:
    wanted = naive_lars(_start(), _gradient, steps=STEPS, weight_decay=weight_decay)
    assert _distance(_run_lars(weight_decay, dtype), wanted) < tolerance


@pytest.mark.parametrize(
    ("mistake", "weight_decay"),
    [
        ("no exclusions", 1e-4),
        ("momentum forgotten", 1e-4),
        ("lr outside the buffer", 1e-4),
        ("nesterov", 1e-4),
        ("sum of norms", 0.5),
        ("no adaptation at weight decay 0", 0.0),
        ("schedule per epoch", 1e-4),
        ("no warm-up", 1e-4),
    ],
)
def test_lars_makes_none_of_the_known_mistakes(mistake: str, weight_decay: float) -> None:
    wrong = naive_lars(_start(), _gradient, steps=STEPS, weight_decay=weight_decay, mistake=mistake)
    assert _distance(_run_lars(weight_decay, torch.float64), wrong) > 1e-3


def test_zero_weights_and_zero_gradients_have_trust_one() -> None:
    zero, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    zero.grad, still.grad = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    LARS([zero, still], lr=0.5).step()
    assert torch.equal(zero.detach(), torch.tensor([-0.5, -1.0, -1.5]))
    assert torch.equal(still.detach(), torch.ones(3))


def _timm_pair(*, weight_decay: float, lrs: list[float], **options: Any) -> float:
    """Return the relative difference between the weights of timm's Lars and LARS after steps with these rates."""
    generator = torch.Generator().manual_seed(0)
    ours = nn.Parameter(torch.randn(4, 5, generator=generator, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    mine = LARS([ours], lr=1.0, weight_decay=weight_decay)
    timms = timm.optim.Lars([theirs], lr=1.0, momentum=0.9, weight_decay=weight_decay, eps=0.0, **options)
    for lr in lrs:
        grad = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        for parameter, optimizer in ((ours, mine), (theirs, timms)):
            parameter.grad = grad.clone()
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
    return float((ours - theirs).norm().detach() / ours.norm().detach())


def test_where_timms_lars_agrees_and_where_it_differs() -> None:
    constant, changing = [0.5] * 5, [0.1, 0.5, 1.0, 0.5, 0.1]
    # with always_adapt, and without decay, eps and a schedule, both are the same
    assert _timm_pair(weight_decay=0, lrs=constant, always_adapt=True) < 1e-14
    # a changing rate: timm's is outside the buffer, so it also rescales past gradients
    assert _timm_pair(weight_decay=0, lrs=changing, always_adapt=True) > 1e-4
    # weight decay: timm divides by |g| + wd |w|, not by |g + wd w|
    assert _timm_pair(weight_decay=0.1, lrs=constant) > 1e-5
    # weight decay 0: timm is plain SGD by default
    assert _timm_pair(weight_decay=0, lrs=constant) > 0.1


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(torch.int32)


@pytest.mark.parametrize("flag", [torch.tensor(1.0), torch.tensor([1.0]), torch.tensor(7.0), torch.tensor(math.nan)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_found_inf_leaves_weights_and_state_as_they_are(flag: Tensor, bad: float) -> None:
    torch.manual_seed(0)
    params = [
        nn.Parameter(torch.randn(5, 4)),
        nn.Parameter(torch.tensor([0.0, -0.0, 1e-42, -3.0])),
        nn.Parameter(torch.randn(4, 6)[:, ::2]),  # its strides differ from the buffer's
        nn.Parameter(torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last)),
    ]
    optimizer = LARS(
        [{"params": params[:1] + params[2:]}, {"params": params[1:2], "adapt": False}],
        lr=0.3,
        weight_decay=0.1,
    )
    for p in params:
        p.grad = -torch.zeros_like(p) if p.ndim == 1 else torch.randn_like(p)
    optimizer.step()
    weights = [_bits(p).clone() for p in params]
    buffers = [_bits(optimizer.state[p]["momentum_buffer"]).clone() for p in params]
    for p in params:
        assert p.grad is not None
        p.grad.flatten()[0] = bad
        p.grad.fill_(bad)
    optimizer.found_inf = flag
    optimizer.step()
    for p, w, v in zip(params, weights, buffers, strict=True):
        assert torch.equal(_bits(p), w)
        assert torch.equal(_bits(optimizer.state[p]["momentum_buffer"]), v)
    optimizer.found_inf = None
    optimizer.step()
    assert not torch.isfinite(params[0]).all()  # without the mask the weights do change


def test_a_first_step_that_is_masked_starts_from_zero_buffers() -> None:
    masked, plain = (nn.Parameter(torch.arange(1.0, 7.0).view(2, 3)) for _ in range(2))
    optimizer, other = LARS([masked], lr=0.1), LARS([plain], lr=0.1)
    optimizer.found_inf = torch.tensor(1.0)
    masked.grad = torch.full((2, 3), math.nan)
    optimizer.step()
    optimizer.found_inf = torch.tensor(0.0)
    masked.grad = plain.grad = torch.ones(2, 3)
    optimizer.step()
    other.step()
    assert torch.equal(_bits(masked), _bits(plain))


class NoHostRead(TorchDispatchMode):
    """Fail at every operation in which the host reads the value of a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(read in name for read in ("_local_scalar_dense", "is_nonzero", "nonzero", "aten.equal", "item")):
            raise AssertionError(f"the host read a tensor: {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("found_inf", [None, torch.tensor(0.0), torch.tensor(1.0)])
def test_a_step_never_waits_for_the_device(found_inf: Tensor | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = LARS(parameter_groups(model), lr=0.1, weight_decay=1e-4)
    optimizer.found_inf = found_inf
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    with NoHostRead():
        optimizer.step()
        with pytest.raises(AssertionError, match="host read"):
            bool(next(model.parameters()).sum() > 0)  # the guard detects a read


def test_any_memory_layout_gives_the_same_update() -> None:
    torch.manual_seed(0)
    w, g = torch.randn(8, 6, 3, 3), torch.randn(8, 6, 3, 3)
    wide = torch.randn(8, 6, 3, 6)
    wide[..., ::2] = w
    layouts = {
        "plain": (w.clone(), g.clone()),
        "channels_last": (
            w.clone(memory_format=torch.channels_last),
            g.clone(memory_format=torch.channels_last),
        ),
        "gradient laid out otherwise": (w.clone(), g.clone(memory_format=torch.channels_last)),
        "with gaps": (wide[..., ::2], g.clone()),
        "transposed": (w.transpose(0, 1).contiguous().transpose(0, 1), g.clone()),
    }
    results = {}
    for name, (weight, grad) in layouts.items():
        p = nn.Parameter(weight)
        optimizer = LARS([p], lr=0.5, weight_decay=0.01)
        for _ in range(3):
            p.grad = grad
            optimizer.step()
        results[name] = p.detach().contiguous()
    for name, result in results.items():
        torch.testing.assert_close(result, results["plain"], rtol=1e-6, atol=1e-7, msg=name)
    assert not torch.equal(results["plain"], w)


def test_gradients_are_left_as_they_were_and_parameters_without_one_are_left_out() -> None:
    p, without = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer = LARS([p, without], lr=0.1, weight_decay=0.1)
    assert optimizer.step(lambda: 4.0) == 4.0
    assert torch.equal(p.grad, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(without.detach(), torch.ones(3))
    assert without not in optimizer.state


def test_the_update_does_not_depend_on_how_a_cpu_splits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for numbers in (0, 30, 10**9):
        monkeypatch.setattr("simclr_lightning.optim.lars._CPU_NUMBERS", numbers)
        results.append(_run_lars(0.1, torch.float32))
    for result in results[1:]:
        assert all(np.array_equal(result[name], value) for name, value in results[0].items())


def test_mixed_dtypes_are_updated_each_in_its_own() -> None:
    params = [nn.Parameter(torch.full((4,), 2.0, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
    for p in params:
        p.grad = torch.full_like(p, 1e-3)
    LARS(params, lr=10.0).step()
    # trust * lr * |g| = 0.001 * 2 / 0.001 * 10 * 0.001 = 0.02 for every number
    for p in params:
        torch.testing.assert_close(p.detach().double(), torch.full((4,), 1.98).double(), rtol=4e-3, atol=0)


def test_a_resumed_optimizer_continues_bit_for_bit() -> None:
    def steps(p: nn.Parameter, optimizer: LARS, numbers: range) -> None:
        for n in numbers:
            p.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(n))
            optimizer.step()

    whole = nn.Parameter(torch.ones(3, 4))
    first = LARS([whole], lr=0.3, weight_decay=1e-4)
    steps(whole, first, range(5))
    saved = io.BytesIO()
    torch.save({"optimizer": first.state_dict(), "weights": whole.detach()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    again = nn.Parameter(loaded["weights"])
    second = LARS([again], lr=1.0)
    second.load_state_dict(loaded["optimizer"])
    steps(whole, first, range(5, 9))
    steps(again, second, range(5, 9))
    assert torch.equal(_bits(whole), _bits(again))


def test_a_copy_and_an_older_state_have_complete_groups() -> None:
    optimizer = LARS([nn.Parameter(torch.ones(2))], lr=0.1)
    assert copy.deepcopy(optimizer).found_inf is None
    state = optimizer.state_dict()
    del state["param_groups"][0]["adapt"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["adapt"] is True


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"lr": math.nan}, {"momentum": 1.0}, {"weight_decay": -1e-6}, {"trust_coefficient": 0.0}],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{next(iter(options))} is .* LARS needs"):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **options})
    with pytest.raises(ValueError, match=rf"optimizer\.{next(iter(options))} is .* LARS needs"):
        LARS([{"params": [nn.Parameter(torch.ones(2))], **options}], lr=0.1)


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="dense gradients"):
        LARS(table.parameters(), lr=0.1).step()
