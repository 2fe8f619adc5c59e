"""Linear layer and fine-tuning by SGD: the frozen encoder, the learning rate, separable features."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from conftest import SMALL, SmallEncoder, small_splits
from simclr_lightning.data import Splits, TensorImages, ViewsDataModule
from simclr_lightning.evaluation import extract
from simclr_lightning.evaluation.classifier import (
    Classifier,
    Diverged,
    FineTuner,
    LinearProbe,
    fit_classifier,
    predict_classes,
)
from simclr_lightning.simclr import SimCLR

CPU = torch.device("cpu")


def data(splits: Splits | None = None, *, batch: int = 16) -> ViewsDataModule:
    found = small_splits() if splits is None else splits
    return ViewsDataModule(lambda path: found, batch_size=batch, recipe=SMALL, seed=5)


def classifier(encoder: nn.Module, labels: torch.Tensor, *, frozen: bool, lr: float = 0.5) -> Classifier:
    return (LinearProbe if frozen else FineTuner)(encoder, 3, labels=labels, lr=lr, batch_size=16)


def fitted(encoder: nn.Module, *, frozen: bool, epochs: int = 2, lr: float = 0.5) -> Classifier:
    images = data()
    labels = images.load().train.labels
    assert labels is not None
    made = classifier(encoder, labels, frozen=frozen, lr=lr)
    fit_classifier(made, images, epochs=epochs, device=CPU)
    return made


def test_a_frozen_encoder_does_not_change_in_a_single_bit() -> None:
    torch.manual_seed(0)
    encoder = SmallEncoder()  # in training mode: BatchNorm would update
    encoder.body[2].eval()
    before = copy.deepcopy(encoder.state_dict())
    made = fitted(encoder, frozen=True)
    after = encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert encoder.body[1].num_batches_tracked == 0
    assert [part.training for part in encoder.body] == [True, True, False]
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert set(made.state_dict()) == {"head.weight", "head.bias"}
    assert made.head.weight.abs().max() > 0
    x = torch.rand(6, 3, 8, 8)
    torch.testing.assert_close(made(x), made.head(copy.deepcopy(encoder).eval()(x)))  # BatchNorm's own statistics


def test_fine_tuning_trains_a_copy_and_its_batchnorm() -> None:
    torch.manual_seed(0)
    encoder = SmallEncoder().eval().requires_grad_(False)
    before = copy.deepcopy(encoder.state_dict())
    made = fitted(encoder, frozen=False)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    trained = made.body.state_dict()
    assert trained["body.1.num_batches_tracked"] == 8  # 70 images, batches of 16, two epochs
    del trained["body.0.bias"]  # BatchNorm subtracts it again, so its gradient is only rounding error
    assert all(not torch.equal(before[name], value) for name, value in trained.items())


def test_the_learning_rate_follows_its_closed_form_without_warm_up() -> None:
    rates = []
    images = data()
    labels = images.load().train.labels
    assert labels is not None
    made = classifier(SmallEncoder(), labels, frozen=True, lr=0.1)
    fit_classifier(
        made, images, epochs=3, device=CPU,
        after_step=lambda: rates.append(made.trainer.optimizers[0].param_groups[0]["lr"]),
    )  # fmt: skip
    total = 3 * (70 // 16)
    expected = [0.1 * 16 / 256 * (1 + math.cos(math.pi * step / total)) / 2 for step in range(1, total + 1)]
    assert rates == pytest.approx(expected, abs=1e-12)
    group = made.trainer.optimizers[0].param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 0)
    assert group["initial_lr"] == 0.1


def test_the_first_steps_use_nesterov_momentum() -> None:
    """Compare with v = mu v + g, w -= lr (g + mu v); the whole set is one batch."""
    splits = small_splits(count=32)
    images, labels = data(splits, batch=32), splits.train.labels
    assert labels is not None
    encoder = SmallEncoder().eval()
    made = LinearProbe(encoder, 3, labels=labels, lr=4.0, batch_size=32)
    seen = []
    step = made.training_step
    made.training_step = lambda batch, batch_idx: (seen.append(batch), step(batch, batch_idx))[1]
    fit_classifier(made, images, epochs=3, device=CPU)
    w, v = torch.zeros(3, 9, dtype=torch.float64), torch.zeros(3, 9, dtype=torch.float64)
    for number, batch in enumerate(seen):
        with torch.no_grad():
            h = torch.cat([encoder(batch["x_a"]), torch.ones(32, 1)], 1).double()
        p = torch.softmax(h @ w.T, 1)
        p[torch.arange(32), labels[batch["indices"]]] -= 1
        g = p.T @ h / 32
        v = 0.9 * v + g
        w -= 4.0 * 32 / 256 * (1 + math.cos(math.pi * number / 3)) / 2 * (g + 0.9 * v)
    got = torch.cat([made.head.weight, made.head.bias[:, None]], 1)
    torch.testing.assert_close(got.double(), w, atol=1e-5, rtol=1e-5)


class Mean(nn.Module):
    """The mean color, (b, 3): features that separate colors."""

    feature_dim = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_separable_features_are_separated_and_shuffled_labels_are_not() -> None:
    splits = small_splits(count=120)
    labels = splits.train.labels
    assert labels is not None
    images = data(splits, batch=24)
    made = LinearProbe(Mean(), 3, labels=labels, lr=20.0, batch_size=24)
    fit_classifier(made, images, epochs=6, device=CPU)
    x = list(images.eval_batches(splits.train))
    assert torch.equal(predict_classes(made, x, device=CPU), labels)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    wrong = LinearProbe(Mean(), 3, labels=labels[order], lr=20.0, batch_size=24)
    fit_classifier(wrong, images, epochs=6, device=CPU)
    assert (predict_classes(wrong, x, device=CPU) == labels).double().mean() < 0.9


def test_the_classifier_uses_h_and_not_the_projector() -> None:
    """h is the output of the encoder, as of `SimCLR.forward`."""
    encoder, x = SmallEncoder().eval(), torch.rand(4, 3, 8, 8)
    module = SimCLR(encoder, nn.Linear(8, 5), None, None, None, global_batch_size=4)
    made = classifier(encoder, torch.zeros(4, dtype=torch.int64), frozen=True)
    assert made.head.in_features == 8
    torch.testing.assert_close(module(x), extract(made.body, [x]))


def test_a_learning_rate_that_diverges_is_named() -> None:
    splits = small_splits(count=32)
    bright = TensorImages(torch.full((32, 3, 12, 12), 255, dtype=torch.uint8), splits.train.labels)
    splits = Splits(bright, None, splits.held_out, splits.class_names, "0")
    assert bright.labels is not None

    class Huge(Mean):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1e20

    made = LinearProbe(Huge(), 3, labels=bright.labels, lr=1e20, batch_size=16)
    with pytest.raises(Diverged, match="lr 1e\\+20"):
        fit_classifier(made, data(splits), epochs=1, device=CPU)


def test_ctrl_c_raises_keyboard_interrupt() -> None:
    images = data()
    labels = images.load().train.labels
    assert labels is not None

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_classifier(
            classifier(SmallEncoder(), labels, frozen=True), images, epochs=1, device=CPU, after_step=interrupt
        )
