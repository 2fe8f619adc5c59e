"""The LightningModule: one forward pass over both views, the groups, the schedule per step."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest
import torch

from conftest import small_data, small_module, small_trainer
from simclr_lightning.optim import Schedule, parameter_groups


def test_batchnorm_sees_both_views_in_one_pass() -> None:
    """Mistake 4: the two views sent through BatchNorm separately."""
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
    """Algorithm 1 in float64, pair by pair, on the module's own z."""
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


def test_the_learning_rate_follows_the_formula_at_every_step_of_a_run(tmp_path: Path) -> None:
    """Mistake 5: stepped per epoch, T_max in the wrong unit, warm-up missing."""
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
