"""Checkpoints of SimCLR: plain hyperparameters, parts that are made again, and files of strangers."""

from __future__ import annotations

import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from made_modules import Net, images, loader, module, trainer, weights
from torch import nn

from simclr_lightning import LARS, NTXent, Projector, Schedule, SimCLR, resnet, timm_encoder

OPTIMIZERS = {
    "LARS": partial(LARS, lr=0.3, weight_decay=1e-4),
    "a class of torch with a tuple": partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95)),
    "a bare class of torch": torch.optim.Adam,
}
SCHEDULES = {
    "this package's": Schedule("sqrt", warmup_epochs=1.5),
    "torch's": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=9),
    "none": None,
}


def parts(**options: Any) -> dict[str, Any]:
    own = {
        "encoder": resnet(10, width=0.125, stem="cifar", mean=[0.5] * 3, std=[0.2] * 3),
        "projector": Projector(64, out_dim=16, layers=3),
        "loss": NTXent(0.3),
        "optimizer": OPTIMIZERS["LARS"],
        "schedule": SCHEDULES["this package's"],
    }
    return {**own, **options}


def saved(made: SimCLR, folder: Path) -> Path:
    """Train one step and save as a user does."""
    fit = trainer(folder, max_steps=1)
    fit.fit(made, loader())
    path = folder / "a.ckpt"
    fit.save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("LARS", "this package's"), ("a class of torch with a tuple", "torch's"), ("a bare class of torch", "none")],
)
def test_a_module_of_this_packages_parts_is_loaded_without_arguments(
    tmp_path: Path, optimizer: str, schedule: str
) -> None:
    options = {"optimizer": OPTIMIZERS[optimizer], "schedule": SCHEDULES[schedule]}
    made = SimCLR(**parts(**options), global_batch_size=8, micro_batch_size=4)
    path = saved(made, tmp_path)
    loaded = SimCLR.load_from_checkpoint(path)
    assert all(torch.equal(value, weights(loaded)[name]) for name, value in weights(made).items())
    assert type(loaded.encoder) is type(made.encoder)
    assert loaded.loss.temperature == 0.3
    assert (loaded.global_batch_size, loaded.micro_batch_size) == (8, 4)
    groups = [one.make_optimizer([{"params": [torch.zeros(2)]}]).param_groups[0] for one in (made, loaded)]
    assert {**groups[0], "betas": None, "params": None} == {**groups[1], "betas": None, "params": None}
    assert list(groups[0].get("betas", [])) == list(groups[1].get("betas", []))
    assert repr(loaded.make_schedule) == repr(made.make_schedule)
    x = images()[0]
    torch.testing.assert_close(loaded.eval().project(x), made.eval().project(x))
    loaded.train()
    resumed = trainer(tmp_path, max_steps=3)
    resumed.fit(loaded, loader(), ckpt_path=path)
    assert resumed.global_step == 3


def test_a_timm_encoder_is_made_again_without_a_download(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    options = {"encoder": timm_encoder("resnet10t"), "projector": Projector(512, 8, 8)}
    path = saved(SimCLR(**parts(**options)), tmp_path)
    assert SimCLR.load_from_checkpoint(path).encoder.spec["name"] == "resnet10t"


def test_parts_of_a_user_are_asked_for_by_name_and_no_others(tmp_path: Path) -> None:
    made = module(projector=Projector(4, 4, 4), schedule=lambda optimizer: None)
    made.make_schedule = None
    path = saved(made, tmp_path)
    with pytest.raises(ValueError, match=r"encoder=\.\.\. \(was made_modules\.Net\), schedule=\.\.\.") as error:
        SimCLR.load_from_checkpoint(path)
    for name in ("projector", "loss", "optimizer"):
        assert f"{name}=" not in str(error.value)
    loaded = SimCLR.load_from_checkpoint(path, encoder=Net(), schedule=None)
    assert all(torch.equal(value, weights(loaded)[name]) for name, value in weights(made).items())


def test_hyperparameters_are_plain_values(tmp_path: Path) -> None:
    path = saved(SimCLR(**parts()), tmp_path)
    hyperparameters = torch.load(path, weights_only=True)["hyper_parameters"]

    def check(value: Any) -> None:
        assert type(value) in (dict, list, str, int, float, bool, type(None))
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    check(hyperparameters)
    assert hyperparameters["loss"] == {"factory": "NTXent", "temperature": 0.3, "gather": True}


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_a_file_of_a_stranger_runs_no_code(tmp_path: Path) -> None:
    path, trace = saved(SimCLR(**parts()), tmp_path), tmp_path / "trace"
    good = torch.load(path, weights_only=True)
    torch.save({**good, "hyper_parameters": Hostile(trace)}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"b\.ckpt was not loaded: it holds more than plain values"):
        SimCLR.load_from_checkpoint(tmp_path / "b.ckpt")
    for name, part in {
        "encoder": {"factory": "os.system", "command": f"touch {trace}"},
        "loss": {"factory": "LARS", "lr": 1.0},
        "optimizer": {"factory": "builtins.open", "file": str(trace), "mode": "w"},
        "schedule": {"factory": "torch.optim.lr_scheduler.LambdaLR.__init__"},
        "projector": {"factory": "Projector", "in_dim": 4, "run": "it"},
    }.items():
        torch.save({**good, "hyper_parameters": {**good["hyper_parameters"], name: part}}, tmp_path / "c.ckpt")
        with pytest.raises(ValueError, match=r"factory|does not fit"):
            SimCLR.load_from_checkpoint(tmp_path / "c.ckpt")
    assert not trace.exists()
    with pytest.raises(ValueError, match="weights_only=False"):
        SimCLR.load_from_checkpoint(path, weights_only=False)
    torch.save({"w": torch.ones(2)}, tmp_path / "d.ckpt")
    with pytest.raises(ValueError, match="not a training checkpoint"):
        SimCLR.load_from_checkpoint(tmp_path / "d.ckpt")


def test_an_open_file_and_a_copy_of_the_module_work(tmp_path: Path) -> None:
    made = SimCLR(**parts())
    file = io.BytesIO(saved(made, tmp_path).read_bytes())
    loaded = SimCLR.load_from_checkpoint(file)
    copied = pickle.loads(pickle.dumps(loaded))
    assert all(torch.equal(value, weights(copied)[name]) for name, value in weights(made).items())


class Longer(SimCLR):
    """A subclass of a user with an argument of its own."""

    def __init__(self, *arguments: Any, extra: int = 3, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.extra = extra
        self.layer = nn.Linear(2, extra)
        self.save_hyperparameters("extra")


def test_a_subclass_gets_its_own_argument_back(tmp_path: Path) -> None:
    made = Longer(**parts(), extra=5)
    loaded = Longer.load_from_checkpoint(saved(made, tmp_path))
    assert loaded.extra == 5


OLD = sorted(Path(__file__).parents[1].glob("system/old_runs/*/checkpoints/last.ckpt"))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parents[1].name)
def test_a_checkpoint_of_an_older_run_is_loaded(path: Path) -> None:
    loaded = SimCLR.load_from_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights(loaded)[name]) for name, value in state.items())
    assert isinstance(loaded.loss, NTXent)
