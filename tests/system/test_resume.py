"""A run that is stopped at any step and resumed ends in the very weights of one that was not."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from conftest import small_data, small_images, small_module, small_trainer
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.resume import _check_same_network
from simclr_lightning.callbacks import StepMetrics, Stopped
from simclr_lightning.data import folder, loading

STEPS = 12  # three epochs of four


class Log(L.Callback):
    """Remembers the images of every step."""

    def __init__(self) -> None:
        self.steps: dict[int, list[int]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: object, outputs: object, batch: object, i: int) -> None:
        self.steps[trainer.global_step] = batch["indices"].tolist()


def run(folder: Path, *, until: int | None = None, resume: bool = False, **options: object) -> tuple[object, Log]:
    log, module = Log(), small_module(batch=options.get("batch", 16))
    where: list[L.Trainer] = []

    def stop() -> int:
        return 15 if until is not None and where[0].global_step >= until else 0

    trainer = small_trainer(folder, stop=stop, extra=[log, StepMetrics()])
    where.append(trainer)
    path = folder / "checkpoints/last.ckpt" if resume else None
    with pytest.raises(Stopped) if until else contextlib.nullcontext():
        trainer.fit(module, datamodule=small_data(**options), ckpt_path=path)
    assert until in (None, trainer.global_step)
    return (module, trainer), log


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], dict[int, list[int]], object]:
    (module, trainer), log = run(tmp_path_factory.mktemp("whole"))
    assert trainer.global_step == STEPS
    return module.state_dict(), log.steps, trainer.optimizers[0].state_dict()


@pytest.mark.parametrize("step", range(1, STEPS))
def test_from_every_step(step: int, tmp_path: Path, whole: tuple[object, ...]) -> None:
    want, images, optimizer = whole
    _, first = run(tmp_path, until=step)
    (module, trainer), second = run(tmp_path, resume=True)
    assert trainer.global_step == STEPS
    assert trainer.current_epoch == 3
    assert {**first.steps, **second.steps} == images
    assert not first.steps.keys() & second.steps.keys()
    got = module.state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)
    state = trainer.optimizers[0].state_dict()["state"]
    assert all(torch.equal(state[i][k], optimizer["state"][i][k]) for i in state for k in state[i])


def test_a_chain_of_stops(tmp_path: Path, whole: tuple[object, ...]) -> None:
    for number, step in enumerate((1, 3, 4, 5, 8, 11)):
        run(tmp_path, until=step, resume=number > 0)
    (module, trainer), _ = run(tmp_path, resume=True)
    assert trainer.global_step == STEPS
    assert all(torch.equal(module.state_dict()[name], whole[0][name]) for name in whole[0])


def test_a_finished_run_trains_no_further_step(tmp_path: Path, whole: tuple[object, ...]) -> None:
    run(tmp_path)
    (module, trainer), log = run(tmp_path, resume=True)
    assert (trainer.global_step, log.steps) == (STEPS, {})
    assert all(torch.equal(module.state_dict()[name], whole[0][name]) for name in whole[0])


# Images in files: three epochs of three steps, decoded by no worker, by two that go on, and by two made anew.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Options of a data module of 26 images in files."""
    root = tmp_path_factory.mktemp("files")
    for index, image in enumerate(small_images(26)[0]):
        Image.fromarray(image).save(root / f"{index:02d}.png")
    return {"batch": 8, "dataset": lambda path: folder(root)}


@pytest.fixture(scope="module")
def whole_of_files(files: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    (module, _), log = run(tmp_path_factory.mktemp("whole"), **files)
    assert sorted(log.steps) == list(range(1, 10))
    return module.state_dict(), log.steps


@pytest.mark.parametrize("workers", ["none", "persistent", "new"])
def test_from_every_step_of_a_run_on_files(
    workers: str, files: dict[str, object], whole_of_files: tuple[object, ...], tmp_path: Path, monkeypatch: object
) -> None:
    if workers == "new":
        monkeypatch.setattr(loading, "DataLoader", lambda *a, **k: DataLoader(*a, **{**k, "persistent_workers": False}))
    options = {**files, "workers": 0 if workers == "none" else 2}
    want, images = whole_of_files
    for step in range(1, 9):
        _, first = run(tmp_path / str(step), until=step, **options)
        (module, trainer), second = run(tmp_path / str(step), resume=True, **options)
        assert (trainer.global_step, trainer.current_epoch) == (9, 3)
        assert {**first.steps, **second.steps} == images
        assert not first.steps.keys() & second.steps.keys()
        assert all(torch.equal(module.state_dict()[name], want[name]) for name in want)


def test_a_key_that_conf_got_after_the_run_is_no_other_network() -> None:
    saved, now = ({"model": {"encoder": node}} for node in ({"name": "vit"}, {"name": "vit", "size": 32}))
    _check_same_network(Path("RUN"), saved, now, given=["trainer.max_steps=4"])
    with pytest.raises(UserError, match=r"model\.encoder\.size differs"):
        _check_same_network(Path("RUN"), saved, now, given=["+model.encoder.size=32"])
