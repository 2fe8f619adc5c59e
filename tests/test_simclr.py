"""SimCLR: one forward pass over both views, any loss of pairs, the parameter groups, the schedule per step."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from conftest import small_data, small_module, small_trainer
from simclr_lightning.optim import Schedule, parameter_groups
from simclr_lightning.simclr import PairLoss, SimCLR


def test_batchnorm_sees_both_views_in_one_pass() -> None:
    """Mistake 4: BatchNorm sees one view at a time."""
    module = small_module()
    x_a, x_b = torch.rand(2, 6, 3, 8, 8).unbind()
    x_b = x_b * 0.2  # so that the statistics of the views differ
    norm = module.encoder.body[1]
    loss = module.training_step({"x_a": x_a, "x_b": x_b}, 0)["loss"]
    both = module.encoder.body[0](torch.cat((x_a, x_b)))
    assert norm.running_mean.allclose(0.1 * both.mean((0, 2, 3)), atol=1e-6)
    assert norm.num_batches_tracked == 1
    module = small_module()
    apart = module.loss(*(module.projector(module.encoder(x)) for x in (x_a, x_b))).loss
    assert not torch.isclose(loss, apart, rtol=1e-3)


def test_the_loss_is_the_papers_algorithm_1() -> None:
    """Algorithm 1 in float64, pair by pair, on the z of the module."""
    module = small_module()
    x_a, x_b = torch.rand(2, 5, 3, 8, 8).unbind()
    out = module.training_step({"x_a": x_a, "x_b": x_b}, 0)
    module = small_module()
    with torch.no_grad():
        z = module.projector(module.encoder(torch.cat((x_a, x_b)))).double()
    n, tau = 5, 0.5
    s = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1) / tau
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        total += -math.log(math.exp(s[i, j]) / sum(math.exp(s[i, k]) for k in range(2 * n) if k != i))
    assert out["loss"].item() == pytest.approx(total / (2 * n), rel=1e-6)
    assert not out["train/loss"].requires_grad


class OnlyLoss(NamedTuple):
    loss: Tensor


class WithAccuracy(NamedTuple):
    loss: Tensor
    accuracy: Tensor


def alignment(z_a: Tensor, z_b: Tensor) -> Tensor:
    return (z_a - z_b).square().sum(dim=1).mean()


LOSSES: dict[str, Any] = {
    "a tensor": alignment,
    "an output": lambda z_a, z_b: OnlyLoss(alignment(z_a, z_b)),
    "an output with one metric": lambda z_a, z_b: WithAccuracy(alignment(z_a, z_b), (z_a - z_b).sum()),
}


def linear(loss: PairLoss, micro: int | None = None) -> SimCLR:
    torch.manual_seed(1)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    sizes = {"global_batch_size": 16, "micro_batch_size": micro}
    return SimCLR(nn.Flatten(), nn.Linear(192, 5, bias=False), loss, optimizer, Schedule("constant"), **sizes)


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_of_pairs_trains_and_metrics_that_it_lacks_are_left_out(name: str, micro: int | None) -> None:
    module = linear(LOSSES[name], micro).double()
    x_a, x_b = torch.rand(2, 16, 3, 8, 8, dtype=torch.float64)
    out = module.training_step({"x_a": x_a, "x_b": x_b}, 0)
    out["loss"].backward()
    # With z = W x, the loss is the mean of |W d|^2 over d = x_a - x_b, and its gradient 2 W d d^T.
    d, w = (x_a - x_b).flatten(1), module.projector.weight.detach()
    assert out["loss"].item() == pytest.approx(((d @ w.T) ** 2).sum().item() / 16, rel=1e-12)
    torch.testing.assert_close(module.projector.weight.grad, 2 * w @ d.T @ d / 16, rtol=1e-10, atol=1e-12)
    metrics = ["train/contrastive_accuracy"] if "metric" in name else []
    assert sorted(out) == ["loss", *metrics, "train/loss"]
    assert not any(out[key].requires_grad for key in out if key != "loss")


def test_a_function_as_the_loss_trains_in_lightning() -> None:
    module = linear(alignment)
    before = module.projector.weight.detach().clone()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=12, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=small_data())
    assert module.projector.weight.norm() < before.norm()  # alignment alone shrinks z


def test_parameters_of_the_loss_are_trained_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
            return self.scale * alignment(z_a, z_b)

    for micro in (None, 4):
        module = linear(Scaled(), micro)
        x = torch.rand(2, 16, 3, 8, 8)
        out = module.training_step({"x_a": x[0], "x_b": x[1]}, 0)
        out["loss"].backward()
        assert module.loss.scale.grad.item() == pytest.approx(out["loss"].item())
        assert any(p is module.loss.scale for group in parameter_groups(module) for p in group["params"])


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda z_a, z_b: (z_a - z_b).square().sum(1), r"the loss returned shape \(16,\); it must return a Tensor"),
        (lambda z_a, z_b: {"loss": z_a.sum()}, r"the loss returned dict; .* or an object with \.loss"),
    ],
)
def test_a_loss_without_a_scalar_is_refused(loss: Any, says: str) -> None:
    x = torch.rand(2, 16, 3, 8, 8)
    with pytest.raises(ValueError, match=says):
        linear(loss).training_step({"x_a": x[0], "x_b": x[1]}, 0)


def test_the_learning_rate_follows_the_formula_at_every_step_of_a_run(tmp_path: Path) -> None:
    """Mistake 5: a scheduler stepped per epoch, T_max in the wrong unit, or no warm-up."""
    seen: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: object, optimizer: object) -> None:
            seen.extend({group["lr"] for group in optimizer.param_groups})

    module = small_module()
    module.make_schedule = Schedule("linear", warmup_epochs=1)
    small_trainer(tmp_path, extra=[Rates()]).fit(module, datamodule=small_data())
    peak, warm, total = 0.5 * 16 / 256, 4, 12
    rises = [peak * step / warm for step in range(warm)]
    falls = [peak * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2 for step in range(warm, total)]
    assert seen == pytest.approx(rises + falls, abs=1e-9)


def test_max_steps_alone_is_enough() -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(small_module(), datamodule=small_data())
    assert trainer.global_step == 3


def test_bn_and_biases_get_neither_decay_nor_adaptation() -> None:
    module = small_module()
    groups = module.make_optimizer(parameter_groups(module)).param_groups
    own, bare = groups
    assert [tuple(p.shape) for p in own["params"]] == [(8, 3, 3, 3), (6, 8)]
    assert len(bare["params"]) == 4  # the convolution's bias, gamma, beta, the projector's bias
    assert (own["weight_decay"], bare["weight_decay"], bare["adapt"]) == (1e-4, 0.0, False)


def test_works_with_hydra_uninstalled(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules.update(dict.fromkeys(('hydra', 'omegaconf', 'wandb')))\n"
        "import simclr_lightning as s\n"
        "assert s.SimCLR and s.ViewsDataModule and s.load_encoder"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path).returncode == 0
