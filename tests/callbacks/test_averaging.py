"""The moving average of the weights: its formula, evaluation, checkpoints, resume."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning as L
import pytest
import torch

from conftest import small_data, small_module, small_trainer
from simclr_lightning import checkpoint
from simclr_lightning.callbacks import AveragedWeights, Stopped, averaged


class Weights(L.Callback):
    """Store the floating-point weights and buffers of the module after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: object) -> None:
        self.steps.append(floats(module.state_dict()))


def floats(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


def run(
    folder: Path, *, until: int | None = None, resume: bool = False
) -> tuple[L.Trainer, L.LightningModule, Weights]:
    weights, module, where = Weights(), small_module(), []

    def stop() -> int:
        return 15 if until is not None and where[0].global_step >= until else 0

    trainer = small_trainer(folder, stop=stop, extra=[weights, AveragedWeights(0.8)])
    where.append(trainer)
    with pytest.raises(Stopped) if until else contextlib.nullcontext():
        trainer.fit(module, datamodule=small_data(), ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)
    return trainer, module, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, L.Trainer, L.LightningModule, Weights]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder)


def test_a_checkpoint_holds_the_average_by_the_formula(
    whole: tuple[Path, L.Trainer, L.LightningModule, Weights],
) -> None:
    folder, _, _, weights = whole
    want = {name: value.double() for name, value in floats(small_module().state_dict()).items()}
    for step, now in enumerate(weights.steps, start=1):
        d = min(0.8, (1 + step) / (10 + step))
        want = {name: d * want[name] + (1 - d) * now[name].double() for name in want}
    saved = checkpoint.load(folder / "checkpoints/last.ckpt")
    assert len(weights.steps) == 12
    for name, value in want.items():
        assert torch.allclose(saved["state_dict"][name].double(), value, rtol=1e-5, atol=1e-7), name
        assert torch.equal(saved["current_model_state"][name], weights.steps[-1][name])
    assert not torch.allclose(saved["state_dict"]["projector.weight"], weights.steps[-1]["projector.weight"])


def test_a_resumed_run_ends_with_the_same_average(
    tmp_path: Path, whole: tuple[Path, L.Trainer, L.LightningModule, Weights]
) -> None:
    run(tmp_path, until=5)
    run(tmp_path, resume=True)
    got, want = (checkpoint.load(folder / "checkpoints/last.ckpt") for folder in (tmp_path, whole[0]))
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(got[part][name], want[part][name]) for name in want[part]), part


def test_the_module_has_the_average_inside_the_context_and_its_weights_afterwards(
    whole: tuple[Path, L.Trainer, L.LightningModule, Weights],
) -> None:
    folder, trainer, module, weights = whole
    saved = checkpoint.load(folder / "checkpoints/last.ckpt")["state_dict"]
    with averaged(trainer, module):
        assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, weights.steps[-1][name]) for name, value in floats(module.state_dict()).items())
    plain = small_trainer(folder)
    with averaged(plain, module):
        assert all(torch.equal(value, weights.steps[-1][name]) for name, value in floats(module.state_dict()).items())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="ema="):
        AveragedWeights(decay)
