"""Gradient caching with random layers, BatchNorm and half precision, its memory, and its use in SimCLR."""

from __future__ import annotations

import contextlib
import copy
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from test_caching_distributed import BATCH, close, smooth, views
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from conftest import SmallEncoder, small_data, small_module, small_trainer
from simclr_lightning.caching import cached_projections, micro_batches
from simclr_lightning.callbacks import Stopped
from simclr_lightning.global_batch import check_micro_batch
from simclr_lightning.ntxent import NTXent
from simclr_lightning.optim import LARS, Schedule
from simclr_lightning.simclr import SimCLR


def simclr(encoder: nn.Module, micro: int | None, batch: int = BATCH) -> SimCLR:
    torch.manual_seed(2)
    projector = nn.Linear(7, 6).double()
    optimizer = partial(LARS, lr=0.5, weight_decay=1e-4)
    options = {"global_batch_size": batch, "micro_batch_size": micro}
    return SimCLR(encoder, projector, NTXent(0.2), optimizer, Schedule("constant"), **options)


class Step(nn.Module):
    """Return the loss of the module's training step."""

    def __init__(self, module: SimCLR) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_a: Tensor, x_b: Tensor) -> Tensor:
        return self.module.training_step({"x_a": x_a, "x_b": x_b}, 0)["loss"]


# -- random layers, BatchNorm, half precision -------------------------------------------------------------------------


def gradients(module: SimCLR, z: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    module.zero_grad()
    module.loss(*z).loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def both(module: SimCLR, micro: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradients by caching, and by storing all activations, from the same random state."""
    x_a, x_b = (x.to(next(module.parameters()).dtype) for x in views(0))
    parts = micro_batches(BATCH, BATCH // micro)
    torch.manual_seed(7)
    cached = gradients(module, cached_projections(module.project, module, lambda p: (x_a[p], x_b[p]), parts))
    after = torch.get_rng_state()
    torch.manual_seed(7)
    kept = [module.project(torch.cat((x_a[p], x_b[p]))).chunk(2) for p in parts]
    plain = gradients(module, tuple(torch.cat(z) for z in zip(*kept, strict=True)))
    assert torch.equal(after, torch.get_rng_state())  # later draws are the same too
    return cached, plain


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    module = simclr(smooth(nn.Dropout(0.4)), 4)
    cached, plain = both(module, 4)
    close(cached, plain, 1e-12)
    assert not torch.equal(torch.rand(3), torch.rand(3))


def test_batchnorm_counts_every_micro_batch_once() -> None:
    modules = [simclr(smooth(nn.BatchNorm2d(5)), 6) for _ in range(2)]
    x_a, x_b = views(0)
    Step(modules[0])(x_a, x_b).backward()
    for part in micro_batches(BATCH, 4):
        modules[1].project(torch.cat((x_a[part], x_b[part])))
    got, want = modules[0].encoder[2], modules[1].encoder[2]
    assert got.num_batches_tracked == 4
    assert torch.equal(got.running_mean, want.running_mean)
    assert torch.equal(got.running_var, want.running_var)
    close(*both(modules[0], 6), 1e-12)


def test_half_precision_is_that_of_the_first_pass() -> None:
    module = simclr(smooth().float(), 4)
    module.projector.float()
    # Without the cache of autocast, the plain pass also casts weights per micro-batch and sums gradients in float32.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        cached, plain = both(module, 4)
    exact, _ = both(module, 4)
    close(cached, plain, 1e-6)
    assert any((cached[name] - exact[name]).norm() > 1e-4 * exact[name].norm() for name in exact)
    assert all(grad.dtype == torch.float32 for grad in cached.values())


def test_backward_outside_of_autocast_is_the_same() -> None:
    """Lightning leaves autocast before the backward pass, and the fp16 scaler multiplies the loss."""
    module = simclr(smooth().float(), 4)
    module.projector.float()
    x_a, x_b = (x.float() for x in views(0))
    found = []
    for leave in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = Step(module)(x_a, x_b)
            if not leave:
                (loss * 2.0**10).backward()
        if leave:
            (loss * 2.0**10).backward()
        found.append({name: p.grad.clone() for name, p in module.named_parameters()})
    close(found[1], found[0], 1e-6)


def test_frozen_and_unused_parameters_and_shared_gradients() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = smooth()
            self.frozen = nn.Parameter(torch.ones(7).double(), requires_grad=False)
            self.unused = nn.Parameter(torch.ones(7).double())
            self.a, self.b = (nn.Parameter(torch.zeros(7).double()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return (self.inner(x) + (self.a + self.b)) * self.frozen

    cached, plain = both(simclr(Odd(), 4), 4)
    assert "encoder.unused" not in cached
    assert torch.equal(cached["encoder.a"], cached["encoder.b"])
    close(cached, plain, 1e-12)


# -- memory -----------------------------------------------------------------------------------------------------------


def peak_bytes(module: SimCLR) -> int:
    """Return the peak bytes of activations that autograd stores during a step, without parameters."""
    held, most = 0, 0
    own = {p.data_ptr() for p in module.parameters()}

    class Kept:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    def let_go(size: int) -> None:
        nonlocal held
        held -= size

    def pack(x: Tensor) -> Kept | Tensor:
        nonlocal held, most
        kept = Kept(x)
        if x.data_ptr() not in own:
            held += x.nbytes
            most = max(most, held)
            weakref.finalize(kept, let_go, x.nbytes)
        return kept

    x_a, x_b = views(0)
    with saved_tensors_hooks(pack, lambda kept: kept.x):
        Step(module)(x_a, x_b).backward()
    assert held == 0
    return most


def test_what_autograd_holds_falls_with_the_micro_batch() -> None:
    sizes = {micro: peak_bytes(simclr(smooth(), micro)) for micro in (4, 8, 12, 24)}
    z = 2 * BATCH * 6 * 8  # the loss stores the gradient for z of the whole batch
    for micro, size in sizes.items():
        assert size - z <= 1.1 * (sizes[24] - z) * micro / BATCH, sizes


# -- the module, the trainer, the checks ------------------------------------------------------------------------------


def fit(folder: Path, *, micro: int | None, lazy: bool = False, **options: Any) -> SimCLR:
    module = small_module()
    module.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 36, 8))
    torch.manual_seed(4)
    for layer in module.encoder:
        getattr(layer, "reset_parameters", int)()
    module.micro_batch_size = micro
    small_trainer(folder, **options).fit(module, datamodule=small_data(lazy=lazy))
    return module


@pytest.mark.parametrize("lazy", [False, True])
def test_a_run_in_lightning_ends_in_the_same_weights(tmp_path: Path, lazy: bool) -> None:
    want = fit(tmp_path / "plain", micro=None)
    got = fit(tmp_path / "cached", micro=4, lazy=lazy)
    close(dict(got.named_parameters()), dict(want.named_parameters()), 1e-5)  # 12 steps in float32


def test_lazy_views_are_asked_for_by_micro_batch_and_are_the_same() -> None:
    eager, lazy = small_data(), small_data(lazy=True)
    raw = [next(iter(data.train_dataloader())) for data in (eager, lazy)]
    lazy.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]  # batches of other stages are not lazy
    want, got = eager.on_after_batch_transfer(raw[0], 0), lazy.on_after_batch_transfer(raw[1], 0)
    assert got.keys() == {"views", "indices", "y"}
    for part in micro_batches(16, 4):
        for x, key in zip(got["views"](part), ("x_a", "x_b"), strict=True):
            assert torch.equal(x, want[key][part])


@pytest.mark.parametrize(
    ("micro", "batch", "devices", "says"),
    [
        (6, 16, 1, "does not divide data.batch_size=16 .*use 4"),
        (32, 16, 1, "larger than data.batch_size=16"),
        (4, 16, 8, "is not divisible by 8 devices.*use 16, for example"),
        (8, 16, 8, "leaves 1 image.*use 16"),
        (1, 16, 1, "leaves 1 image"),
    ],
)
def test_micro_batches_that_cannot_be_are_refused(micro: int, batch: int, devices: int, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        check_micro_batch(micro, batch_size=batch, devices=devices)
    assert f"micro_batch_size={micro}" in str(error.value)


def test_the_module_checks_them_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="micro_batch_size=5 does not divide"):
        simclr(SmallEncoder(), 5)
    module = small_module()
    module.micro_batch_size = 6  # as if set after construction
    with pytest.raises(ValueError, match="micro_batch_size=6"):
        L.Trainer(max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu").fit(
            module, datamodule=small_data()
        )


def test_micro_batches_cover_the_rows() -> None:
    assert micro_batches(12, 3) == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert micro_batches(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_a_compiled_network_trains_the_same_and_keeps_its_keys() -> None:
    plain, compiled = simclr(smooth(), 6), simclr(smooth(), 6)
    compiled.compile_network(backend="aot_eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert copy.deepcopy(compiled)._compiled is None
    for module in (plain, compiled):
        Step(module)(*views(0)).backward()
    gradient = [{name: p.grad for name, p in module.named_parameters()} for module in (compiled, plain)]
    close(*gradient, 1e-12)


def test_a_stopped_run_ends_in_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    """With BatchNorm, whose running statistics are part of the state, and views made per micro-batch."""

    def run(folder: Path, *, until: int | None = None, resume: bool = False) -> SimCLR:
        module, where = small_module(), []
        module.micro_batch_size = 4
        trainer = small_trainer(folder, stop=lambda: 15 if where[0].global_step == until else 0)
        where.append(trainer)
        path = folder / "checkpoints/last.ckpt" if resume else None
        with pytest.raises(Stopped) if until else contextlib.nullcontext():
            trainer.fit(module, datamodule=small_data(lazy=True), ckpt_path=path)
        return module

    whole = run(tmp_path / "whole").state_dict()
    run(tmp_path / "part", until=6)
    part = run(tmp_path / "part", resume=True).state_dict()
    assert all(torch.equal(part[name], whole[name]) for name in whole)
