"""SimCLR in a plain Trainer: batches, losses, schedules, every stage, and the options of Lightning."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from made_modules import BATCH, COUNT, Pairs, images, loader, module, nt_xent_by_hand, trainer, weights
from torch import Tensor, nn
from torch.optim import lr_scheduler

from conftest import small_data, small_module
from simclr_lightning import Schedule, SimCLR
from simclr_lightning.callbacks import StepMetrics

STEPS = 2 * COUNT // BATCH


class Rates(L.Callback):
    """Record the learning rate of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: object, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


cosine = [0.5 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
SCHEDULES = {
    "this package's": (Schedule("linear", warmup_epochs=0), [rate * BATCH / 256 for rate in cosine]),
    "a class of torch": (partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS), cosine),
    "a dictionary": (
        {"scheduler": partial(lr_scheduler.StepLR, step_size=1, gamma=0.5), "interval": "epoch"},
        [0.5] * 3 + [0.25] * 3,
    ),
    "a function that returns a dictionary": (
        lambda optimizer: {"scheduler": lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"},
        [0.5 * 0.9**step for step in range(STEPS)],
    ),
    "none": (None, [0.5] * STEPS),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_kind_of_schedule_sets_the_rates_of_its_closed_form(kind: str) -> None:
    schedule, rates = SCHEDULES[kind]
    seen = Rates()
    trainer(callbacks=[seen]).fit(module(schedule=schedule), loader())
    assert seen.seen == pytest.approx(rates, abs=1e-12)


def test_a_schedule_of_torch_that_needs_the_length_gets_it() -> None:
    seen = Rates()
    schedule = partial(lr_scheduler.OneCycleLR, max_lr=1.0, pct_start=0.5, cycle_momentum=False)
    trainer(callbacks=[seen]).fit(module(schedule=schedule), loader())
    assert len(seen.seen) == STEPS
    assert (seen.seen[0], max(seen.seen)) == (pytest.approx(1 / 25), pytest.approx(1.0, abs=0.2))  # OneCycleLR's


def lightly_loss() -> Any:
    return pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.5)


def metric_learning_loss() -> Any:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    return losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.5))


class Adapter(nn.Module):
    """A loss of embeddings and labels of pytorch-metric-learning, as one of pairs."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        return self.loss(torch.cat((z_a, z_b)), torch.arange(len(z_a)).repeat(2))


def adapted_loss() -> Any:
    return Adapter(pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss(temperature=0.5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", [lightly_loss, metric_learning_loss, adapted_loss])
def test_nt_xent_of_another_package_trains_to_the_weights_of_ours(make: Any) -> None:
    ours, theirs = module(), module(make())
    for one in (ours, theirs):
        trainer().fit(one, loader())
    found = weights(theirs)
    for name, value in weights(ours).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "form", ["pair", "pair and label", "pair, label and name", "dictionary", "dictionary with labels"]
)
@pytest.mark.parametrize("micro", [None, 4])
def test_every_form_of_a_batch_trains_to_the_same_weights(form: str, micro: int | None) -> None:
    found, wanted = module(micro_batch_size=micro), module(micro_batch_size=micro)
    trainer(max_epochs=1).fit(found, loader(form))
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.5)
    for x_a, x_b in zip(*(x.split(BATCH) for x in images()[:2]), strict=True):
        z = [wanted.projector(torch.tanh(wanted.encoder.conv(x)).mean((2, 3))) for x in (x_a, x_b)]
        optimizer.zero_grad()
        nt_xent_by_hand(*z, 0.5).backward()
        optimizer.step()
    for name, value in weights(wanted).items():
        torch.testing.assert_close(weights(found)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("image", "the batch is a Tensor of shape .*, without two views; use"),
        ("image and label", r"the views of the batch have the shapes \(8, 3, 8, 8\) and \(8,\)"),
        ("dictionary of images", "a dictionary with the keys x, indices, without two views"),
        ("three views", "the batch has 3 views, and the loss NTXent takes 2"),
    ],
)
def test_a_batch_without_the_views_of_the_loss_is_refused_before_the_first_step(form: str, says: str) -> None:
    fit = trainer()
    with pytest.raises(ValueError, match=says):
        fit.fit(module(), loader(form))
    assert fit.global_step == 0


@pytest.mark.parametrize("micro", [None, 4])
def test_a_loss_of_more_views_gets_all_of_them_and_one_of_labels_gets_the_labels(micro: int | None) -> None:
    def spread(*z: Tensor) -> Tensor:
        return torch.stack(z).var(0).sum()

    made = module(spread, micro_batch_size=micro, global_batch_size=BATCH).double()
    x_a, x_b, y = (value[:BATCH] for value in images())
    x_a, x_b = x_a.double(), x_b.double()
    z = [made.project(x) for x in (x_a, x_b, x_a)]
    wanted = (sum(v.square() for v in z) / 3 - (sum(z) / 3).square()).sum() * 3 / 2
    assert made.training_step((x_a, x_b, x_a), 0)["loss"].item() == pytest.approx(wanted.item(), rel=1e-4)

    def by_class(z_a: Tensor, z_b: Tensor, labels: Tensor) -> Tensor:
        return (z_a - z_b).square().sum(1) @ labels.double()

    made = module(by_class, micro_batch_size=micro, global_batch_size=BATCH).double()
    wanted = ((made.project(x_a) - made.project(x_b)).square().sum(1) * y).sum()
    assert made.training_step([[x_a, x_b], y], 0)["loss"].item() == pytest.approx(wanted.item(), rel=1e-4)
    with pytest.raises(ValueError, match="the loss by_class needs labels"):
        made.training_step((x_a, x_b), 0)


def test_validate_and_test_log_the_loss_of_held_out_views_in_evaluation_mode() -> None:
    made = small_module()
    made.encoder.body[1].running_mean.fill_(0.3)
    before = weights(made)
    held_out = torch.utils.data.DataLoader(Pairs(), batch_size=10)  # batches of 10, 10 and 4
    twin = small_module()
    twin.load_state_dict(before)
    twin.eval()
    x_a, x_b, _ = images()
    losses, right = [], []
    for rows in torch.arange(COUNT).split(10):
        z_a, z_b = (nn.functional.normalize(twin.projector(twin.encoder(x[rows]))) for x in (x_a, x_b))
        losses += [nt_xent_by_hand(z_a, z_b, 0.5).item()] * len(rows)
        s = z_a @ z_b.T
        right += [(s.argmax(1) == torch.arange(len(s))).double().mean().item()] * (len(rows) // 2)
        right += [(s.argmax(0) == torch.arange(len(s))).double().mean().item()] * (len(rows) // 2)
    for stage, run in (("val", trainer().validate), ("test", trainer().test)):
        (found,) = run(made, held_out, verbose=False)
        assert found[f"{stage}/loss"] == pytest.approx(sum(losses) / COUNT, rel=1e-5)
        assert found[f"{stage}/contrastive_accuracy"] == pytest.approx(sum(right) / COUNT, abs=1e-6)
        assert 0 < found[f"{stage}/contrastive_entropy"] <= math.log(10)
    assert all(torch.equal(before[name], value) for name, value in weights(made).items())


@pytest.mark.parametrize("form", ["image", "image and label", "dictionary of images"])
def test_predict_returns_h_of_every_image(form: str) -> None:
    made = module()
    found = torch.cat(trainer().predict(made, loader(form)))
    torch.testing.assert_close(found, torch.tanh(made.encoder.conv(images()[0])).mean((2, 3)))
    with pytest.raises(ValueError, match="without images; use a Tensor"):
        trainer().predict(made, loader("dictionary"))


def test_the_options_of_the_trainer_mean_what_lightning_means(tmp_path: Path) -> None:
    steps = {}
    for name, options in {
        "fast_dev_run": {"fast_dev_run": True},
        "overfit": {"overfit_batches": 1, "max_epochs": 3},
        "limit": {"limit_train_batches": 2, "limit_val_batches": 1},
        "max_steps": {"max_steps": 4, "max_epochs": -1},
    }.items():
        fit = trainer(**options)
        fit.fit(module(schedule=Schedule(warmup_epochs=0)), loader(), loader())
        steps[name] = fit.global_step
    assert steps == {"fast_dev_run": 1, "overfit": 3, "limit": 4, "max_steps": 4}
    made = module(lr=1.0)
    before = weights(made)
    trainer(max_steps=1, gradient_clip_val=1e-3).fit(made, loader())
    moved = torch.cat([(value - before[name]).flatten() for name, value in weights(made).items()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_accumulated_gradients_are_the_mean_over_batches_and_one_warning_names_micro_batch_size() -> None:
    made, wanted, seen = module(schedule=Schedule("linear", warmup_epochs=0)), module(), Rates()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[seen]).fit(made, loader())
    assert sum("SimCLR(micro_batch_size=...)" in str(one.message) for one in caught) == 1
    rate = 0.5 * 3 * BATCH / 256  # the images of one optimizer step
    assert seen.seen == [pytest.approx(rate)]
    x_a, x_b, _ = images()
    for rows in torch.arange(COUNT).split(BATCH):
        (nt_xent_by_hand(wanted.project(x_a[rows]), wanted.project(x_b[rows]), 0.5) / 3).backward()
    for name, parameter in wanted.named_parameters():
        moved = parameter.detach() - rate * parameter.grad
        torch.testing.assert_close(weights(made)[name], moved, rtol=1e-4, atol=1e-6)


def test_the_global_batch_comes_from_the_loader_and_another_one_is_refused() -> None:
    made = module(schedule=Schedule())
    trainer(max_steps=1).fit(made, loader())
    assert made.global_batch_size == BATCH
    made = module(schedule=Schedule())
    trainer(max_steps=1).fit(made, datamodule=small_data())
    assert made.global_batch_size == 16
    fit = trainer()
    with pytest.raises(ValueError, match="global_batch_size=16, but the loader makes 8 images a step; leave it out"):
        fit.fit(module(global_batch_size=16), loader())
    with pytest.raises(ValueError, match="micro_batch_size=3 does not divide"):
        fit.fit(module(micro_batch_size=3), loader())
    assert fit.global_step == 0


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x.flatten(1)), x


def test_a_wrong_encoder_ends_the_training_before_its_first_step() -> None:
    fit, made = trainer(), module(encoder=Tuple())
    with pytest.raises(ValueError, match="the encoder returned a tuple of 2"):
        fit.fit(made, loader())
    assert fit.global_step == 0


def test_the_check_of_the_encoder_changes_no_weight_of_a_training() -> None:
    found = []
    for check in (True, False):
        made = small_module()
        made.encoder.body.append(nn.Dropout(0.5))
        if not check:
            made.on_train_batch_start = lambda batch, batch_idx: None
        torch.manual_seed(1)
        trainer().fit(made, datamodule=small_data())
        found.append(weights(made))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_resumed_training_ends_in_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    def fit(epochs: int, path: Path | None = None) -> SimCLR:
        made, saves = small_module(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fitted = trainer(tmp_path, max_epochs=epochs, enable_checkpointing=True, callbacks=[saves])
        fitted.fit(made, datamodule=small_data(), ckpt_path=path)
        return made

    whole = fit(4)
    with warnings.catch_warnings():  # the folder of a resumed training is not empty
        warnings.filterwarnings("ignore", message="Checkpoint directory")
        resumed = fit(4, tmp_path / "epoch=1.ckpt")
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_a_training_logs_its_loss_at_log_steps_only_and_reads_nothing_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, reads = module(), []
    fit = trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda value: (reads.append(fit.global_step), item(value))[1])
    fit.fit(made, loader())
    monkeypatch.undo()
    assert set(reads) <= {0, 2, 3, 4, 6}  # 0: before the training; 3: between the epochs
    rows = (Path(fit.logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "train/contrastive_accuracy", "train/contrastive_entropy"} <= set(rows[0].split(","))
    assert len(rows) == 1 + STEPS // 2
    made, x_a, x_b = module(), *(x[BATCH : 2 * BATCH] for x in images()[:2])
    trainer(max_steps=1).fit(made, loader())
    wanted = nt_xent_by_hand(made.project(x_a), made.project(x_b), 0.5).item()
    column = rows[0].split(",").index("train/loss")
    assert float(rows[1].split(",")[column]) == pytest.approx(wanted, rel=1e-5)


def test_the_bar_shows_the_loss_and_step_metrics_replace_the_logs_of_the_module(tmp_path: Path) -> None:
    fit = trainer(tmp_path, enable_progress_bar=True, max_epochs=1)
    fit.fit(module(), loader())
    assert fit.progress_bar_metrics["loss"] == pytest.approx(fit.callback_metrics["train/loss"].item())
    logger = CSVLogger(tmp_path)
    fit = trainer(tmp_path, logger=logger, callbacks=[StepMetrics(every_n_steps=3)])
    made = module()
    fit.fit(made, loader())
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4  # two rows of three steps, two of an epoch
    assert "train/loss_step" in header
    assert made.logs_steps


def test_a_loss_with_no_temperature_and_no_gather_validates_too() -> None:
    def distance(z_a: Tensor, z_b: Tensor) -> Tensor:
        return (z_a - z_b).square().mean()

    fit, made = trainer(), module(distance)
    fit.fit(made, loader(), loader("pair"))
    x_a, x_b, _ = images()
    wanted = (made.project(x_a) - made.project(x_b)).square().mean().item()
    assert fit.callback_metrics["val/loss"].item() == pytest.approx(wanted, rel=1e-4)
    assert "val/contrastive_accuracy" not in fit.callback_metrics
