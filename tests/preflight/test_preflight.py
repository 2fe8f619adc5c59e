"""Measurements before a run: they are correct, have no side effects, and do not stop a run."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import OVERRIDES, SMALL, SmallEncoder, small_data, small_images, small_module, small_trainer
from simclr_lightning import preflight, resnet
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.training.preflight import preflight_line
from simclr_lightning.callbacks import Stopped
from simclr_lightning.data import ViewsDataModule, folder
from simclr_lightning.preflight import Rates, rates as rates_module
from simclr_lightning.preflight.cost import pair_flops
from simclr_lightning.simclr import SimCLR

CPU = torch.device("cpu")


class DropoutEncoder(SmallEncoder):
    """Uses the global random generator in every forward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), 0.2, training=self.training)


def generators() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def test_measuring_has_no_side_effects() -> None:
    module, data = small_module(), small_data()
    module.encoder = DropoutEncoder()
    data.load()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    before = generators()
    rates = preflight.measure_rates(module, data, batch=16, device=CPU)
    preflight.measure_cost(module, size=8, device=CPU)
    assert generators() == before
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    assert (data.batch_size, data.samples_seen) == (16, 0)
    assert rates.data > 0
    assert rates.encoder > 0
    assert rates.workers == 0


def trained(folder: Path, *, measured: bool) -> SimCLR:
    module, data = small_module(), small_data()
    module.encoder = DropoutEncoder()
    trainer = small_trainer(folder)
    torch.manual_seed(7)
    if measured:
        line = preflight_line(cfg("true"), module, data, trainer, devices=1, steps=12)
        assert line.startswith("pre-flight: data ")
    trainer.fit(module, datamodule=data)
    return module


def test_a_run_has_the_same_weights_with_and_without_measuring(tmp_path: Path) -> None:
    on, off = (trained(tmp_path / str(measured), measured=measured).state_dict() for measured in (True, False))
    assert on.keys() == off.keys()
    assert all(torch.equal(on[name], off[name]) for name in on)


def cfg(word: str) -> DictConfig:
    return compose(["trainer.accelerator=cpu", f"preflight={word}"])


def test_a_signal_in_measuring_stops_the_run_and_an_error_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [RuntimeError("no memory\nfor this"), Stopped(15)]

    def broken(*args: object, **kwargs: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(preflight, "measure_rates", broken)
    parts = (small_module(), small_data(), small_trainer(tmp_path))
    assert preflight_line(cfg("false"), *parts, devices=1, steps=1000) == ""
    assert preflight_line(cfg("auto"), *parts, devices=1, steps=199) == ""
    said = preflight_line(cfg("auto"), *parts, devices=1, steps=200)
    assert said == "pre-flight: not measured (RuntimeError: no memory)"
    with pytest.raises(Stopped):
        preflight_line(cfg("true"), *parts, devices=1, steps=1)


def test_rates_follow_from_a_fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of the clock advances it by a second, and there are two calls per batch of 16."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(rates_module, "now", lambda device: float(next(ticks)))
    data = small_data()
    data.load()
    whole, finish = preflight.data_rate(data, batch=16, device=CPU, seconds=5)
    assert whole == 16 / 2  # two calls per batch
    assert finish == 16 / 1  # between them


def test_workers_are_measured_and_end(tmp_path: Path) -> None:
    for index, image in enumerate(small_images(24)[0]):
        Image.fromarray(image).save(tmp_path / f"{index:02d}.png")
    data = ViewsDataModule(folder, path=tmp_path, batch_size=16, recipe=SMALL, num_workers=1)
    rates = preflight.measure_rates(small_module(), data, batch=16, device=CPU, images=100)
    assert rates.workers == 1
    assert 0 < rates.data < rates.finish
    assert multiprocessing.active_children() == []


def test_the_encoder_is_measured_at_its_batch_size_and_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def took(module: SimCLR, pairs: int, *rest: object) -> float:
        seen.append(pairs)
        return pairs / 1000

    monkeypatch.setattr(rates_module, "time_step", took)
    assert preflight.encoder_rate(small_module(), batch=64, size=8, device=CPU) == 1000
    assert max(seen) == 64
    seen.clear()
    assert preflight.encoder_rate(small_module(), batch=100_000, size=8, device=CPU) == 1000
    assert max(seen) < 1000, "a step as long as the whole budget is never made"
    assert sum(seen) / 1000 < 2 * rates_module.SECONDS


# -- cost: closed forms -----------------------------------------------------------------------------------------------


def test_parameters_and_bytes_equal_a_count_by_hand() -> None:
    """SmallEncoder: a convolution 3 -> 8 of 3 x 3 with bias, BatchNorm of 8; projector: 8 x 6 and a bias."""
    cost = preflight.measure_cost(small_module(), size=8, device=CPU)
    encoder, projector = 8 * 3 * 9 + 8 + 2 * 8, 8 * 6 + 6
    assert (cost.encoder_parameters, cost.projector_parameters) == (encoder, projector)
    assert cost.gradients == 4 * (encoder + projector)
    assert cost.weights == cost.gradients + 4 * 2 * 8 + 8  # running mean and variance, and a counter of 64 bits
    assert cost.optimizer == cost.gradients  # LARS keeps one buffer
    # A pair is two rows: both views and their concatenation (3 x 8 x 8), what the convolution gives and what ReLU
    # leaves (8 x 6 x 6, ReLU in place of BatchNorm's output), h (8), and what the loss keeps: its gradient on z (6).
    per_row = 2 * 3 * 8 * 8 + 2 * 8 * 6 * 6 + 8 + 6
    assert cost.per_pair == 2 * 4 * per_row
    assert not cost.measured


def test_operations_of_resnet18_equal_the_published_number() -> None:
    """1.8 G multiply-adds forward at 224 (He et al. 2016, table 1); backward twice that, but for the first layer."""
    with torch.device("meta"):
        encoder = resnet(18)
        image = torch.rand(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        encoder(image)
    head = 2 * 512 * 1000  # the published figure holds the classifier, which h does not pass
    assert (counter.get_total_flops() + head) / 2 == pytest.approx(1.8e9, rel=0.02)


def test_operations_of_a_pair_equal_a_count_by_hand() -> None:
    """Forward, and backward for weights and for inputs; the images themselves need no gradient."""
    convolution, linear = 2 * (6 * 6) * 8 * 27, 2 * 8 * 6
    assert pair_flops(small_module(), 8, CPU) == 2 * (2 * convolution + 3 * linear)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    cost = preflight.Cost(1, 1, 1.0, weights=100, gradients=100, optimizer=100, per_pair=7, constant=50, measured=False)
    fits = preflight.largest_batch(cost, free=2000)
    assert fits == 207  # (0.9 * 2000 - 350) / 7
    assert cost.bytes(fits) <= 0.9 * 2000 < cost.bytes(fits + 1)
    assert preflight.largest_batch(cost, free=300) == 0
    assert 0 < preflight.free_bytes(CPU) < 2**50


# -- advice -------------------------------------------------------------------------------------------------------


def test_the_rate_of_a_step_follows_from_its_parts() -> None:
    assert preflight.step_rate(Rates(data=300, finish=300, encoder=150, workers=0)) == pytest.approx(100)
    assert preflight.step_rate(Rates(data=90, finish=600, encoder=300, workers=2)) == 90
    assert preflight.step_rate(Rates(data=500, finish=600, encoder=300, workers=2)) == pytest.approx(200)


@pytest.mark.parametrize(
    ("rates", "in_memory", "cores", "says"),
    [
        (Rates(9000, 9000, 700, 0), True, 2, "the encoder limits the run"),
        (Rates(4000, 9000, 700, 4), False, 8, "the encoder limits the run"),
        (Rates(500, 9000, 1000, 0), False, 8, "makes the run 67% slower: set data.num_workers=2"),
        (Rates(500, 9000, 1500, 2), False, 8, "data.num_workers=6"),
        (
            Rates(500, 9000, 9000, 2),
            False,
            8,
            "data.num_workers=8 of 8 cores, and make the files smaller once with simclr pack IMAGES OUT",
        ),
        (Rates(500, 90000, 9000, 8), False, 8, "make the files smaller once with simclr pack IMAGES OUT"),
        (Rates(1000, 1000, 1000, 0), True, 2, "set data.resident=true to store the images on the device"),
    ],
)
def test_the_line_names_the_limit_and_what_to_change(rates: Rates, in_memory: bool, cores: int, says: str) -> None:
    line = preflight.line(rates, processes=1, cores=cores, in_memory=in_memory, resident=False, packable=True)
    assert line.startswith("pre-flight: data ")
    assert line.endswith(says)


def test_rates_of_all_processes_are_shown() -> None:
    line = preflight.line(
        Rates(4000, 9000, 712, 4), processes=8, cores=8, in_memory=False, resident=False, packable=False
    )
    assert "data 32,000 images/s with 4 workers per process, encoder 5,700 images/s" in line


# -- dry_run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_what_a_run_needs(
    simclr: Callable[..., int], npz: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert simclr("train", *OVERRIDES, f"data.path={npz}", "trainer.devices=2", "dry_run=true") == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out
    for part in ("2 cpu, 8 of 16 images on each", "30 a view", "FLOP a pair", "largest batch", "8 steps at"):
        assert part in said, said
    encoder = sum(p.numel() for p in resnet(10, 0.125, "cifar").parameters())
    assert f"encoder {encoder:,}" in said
