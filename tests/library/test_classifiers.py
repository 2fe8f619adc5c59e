"""LinearProbe and FineTuner in a plain Trainer, on the encoder of a user."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from made_modules import BATCH, COUNT, Net, images, loader, trainer, weights
from torch import nn

from conftest import SmallEncoder, small_data
from simclr_lightning import FineTuner, LinearProbe

KINDS = [LinearProbe, FineTuner]


def features(encoder: nn.Module) -> torch.Tensor:
    return torch.tanh(encoder.conv(images()[0])).mean((2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_by_the_recipe_of_the_paper(kind: Any) -> None:
    """SGD with Nesterov momentum 0.9, lr * B / 256, cosine decay, no weight decay; the rule of torch, step by step."""
    torch.manual_seed(0)
    encoder = Net()
    made, wanted, head = kind(encoder, 3), Net(), nn.Linear(4, 3)
    wanted.load_state_dict(encoder.state_dict())
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    trained = [*head.parameters()] if kind is LinearProbe else [*wanted.parameters(), *head.parameters()]
    before = weights(made)
    trainer(max_epochs=2).fit(made, loader("image and label"))
    optimizer = torch.optim.SGD(trained, lr=1.0, momentum=0.9, nesterov=True)
    y = images()[2]
    for step, rows in enumerate([*torch.arange(COUNT).split(BATCH)] * 2):
        peak = (0.1 if kind is LinearProbe else 0.05) * BATCH / 256
        optimizer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / 6)) / 2
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features(wanted)[rows]), y[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(made.head.weight, head.weight, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(made.body.conv.weight, wanted.conv.weight)
    assert torch.equal(encoder.conv.weight, before.get("encoder.conv.weight", encoder.conv.weight))


@pytest.mark.parametrize("kind", KINDS)
def test_validation_logs_loss_and_accuracy_and_predict_returns_classes(kind: Any) -> None:
    torch.manual_seed(0)
    made = kind(Net(), 3)
    nn.init.normal_(made.head.weight)
    held_out = torch.utils.data.DataLoader(loader("image and label").dataset, batch_size=10)
    with torch.no_grad():
        logits, y = made.head(features(made.body)), images()[2]
    wanted = nn.functional.cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()
    for stage, run in (("val", trainer().validate), ("test", trainer().test)):
        (found,) = run(made, held_out, verbose=False)
        assert (found[f"{stage}/loss"], found[f"{stage}/accuracy"]) == pytest.approx(wanted, rel=1e-5)
    assert torch.equal(torch.cat(trainer().predict(made, loader("image"))), logits.argmax(1))
    fit = trainer()
    fit.fit(made, loader("image and label"), held_out)
    assert {"train/loss", "val/accuracy"} <= fit.callback_metrics.keys()


def test_the_views_and_the_labels_of_a_data_module_are_taken_too() -> None:
    data = small_data()
    probe = LinearProbe(SmallEncoder(), 3, labels=data.load().train.labels)
    fit = trainer(max_steps=2)
    fit.fit(probe, datamodule=data)
    assert fit.global_step == 2
    assert fit.optimizers[0].param_groups[0]["initial_lr"] == 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_loaded_with_the_encoder(kind: Any, tmp_path: Path) -> None:
    encoder = Net()
    made, fit = kind(encoder, 3, lr=0.7), trainer(max_steps=2)
    fit.fit(made, loader("image and label"))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt", encoder=encoder)
    assert loaded.lr == 0.7
    torch.testing.assert_close(loaded(images()[0]), made(images()[0]))


@pytest.mark.parametrize("form", ["image", "pair"])
def test_a_batch_without_classes_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match=r"LinearProbe needs batches \(x, y\)"):
        trainer().fit(LinearProbe(Net(), 3), loader(form))
