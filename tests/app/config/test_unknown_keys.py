"""Mistyped keys, groups and options: the message suggests the nearest real name."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.open_nodes import arguments_of
from simclr_lightning.app.config.written import FILES, written_arguments
from simclr_lightning.app.errors import LINES, UserError

MISTAKES = {
    "loss.temp=1": ["did you mean loss.temperature?"],
    "loss.temprature=1": ["loss.temprature", "did you mean loss.temperature?"],
    "temperature=1": ["did you mean loss.temperature?"],
    "tau=1": ["did you mean loss.temperature?"],
    "lr=3": ["did you mean optimizer.lr?"],
    "optimizer.LR=3": ["did you mean optimizer.lr?"],
    "epochs=3": ["did you mean trainer.max_epochs?"],
    "max_epochs=3": ["did you mean trainer.max_epochs?"],
    "trainer.epochs=3": ["did you mean trainer.max_epochs?"],
    "trainer.gpus=2": ["did you mean trainer.devices?"],
    "batch_size=64": ["did you mean data.batch_size?"],
    "data.batchsize=64": ["did you mean data.batch_size?"],
    "model.projector.out=64": ["did you mean model.projector.out_dim?"],
    "modle=resnet50": ["did you mean model?"],
    "optimiser=sgd": ["did you mean optimizer?"],
    "hydra.rundir=x": ["did you mean hydra.run.dir?"],
    "loss.temperature.x=1": ["did you mean loss.temperature?"],
    "model=resnet51": ["did you mean resnet50?", "resnet101, resnet152, resnet18, resnet34, resnet50"],
    "data=Folder": ["did you mean folder?"],
    "views=simclr_cifra": ["did you mean simclr_cifar?"],
    "optimizer=sdg": ["did you mean sgd?"],
    "experiment=nope": ["cifar10, cifar10_fast, fashion_mnist, imagenet, photos, stl10, temperature_batch"],
    "hydra/launcher=simcl": ["did you mean simclr?"],
    "model=null": ["the options are"],
    "model=[resnet18,resnet50]": ["the options are"],
    "model=18": ["the options are"],
    "+experiment=cifar10": ["write experiment=cifar10"],
    "~model": ["cannot be removed"],
    "~trainer.max_epoch": ["~trainer.max_epoch", "did you mean trainer.max_epochs?"],
    "+seed=3": ["write seed=3"],
    "+foo=1": ["foo: unknown key", "the groups are callbacks, data"],
    "++foo=1": ["foo: unknown key"],
    "++loss.temprature=1": ["did you mean loss.temperature?"],
    "+loss.gatherr=false": ["did you mean loss.gather?"],
    "+trainer.gradient_clip_vall=1": ["did you mean trainer.gradient_clip_val?"],
    "trainer.gradient_clip_vall=1": ["did you mean trainer.gradient_clip_val?"],
    "loss.gather=false": ["add it with a plus: +loss.gather=false"],
    "early_stopping=defalt": ["did you mean default?"],
    "logger=[csv,tensorbord]": ["did you mean tensorboard?"],
    "logger=neptune": ["whose service has ended"],
    "callbacks.onlin.k=3": ["did you mean callbacks.online.k"],
    "callbacks.online._target_=mypkg.Mine": ["give yours another name"],
    "+model.encoder.img_size=32": ["model.encoder.img_size: unknown key", "model.encoder has depth"],
    "+linear.lr=0.1": ["linear.lr: unknown key"],  # a key of evaluate.yaml
    "callbacks.foo=1": ["callbacks has checkpoints, hardness, metrics, online; your own callback needs callbacks.NAME"],
    "model.encoder={depth:18,foo:3}": ["model.encoder.foo: unknown key"],
    "a@b=c": ["a: unknown key"],
    "data=folder": ["data=folder needs data.path=DIR"],
    "data=array": ["data=array needs data.path=FILE.npz"],
    "loss.temperature": ["must be KEY=VALUE"],
    "--foo": ["must be KEY=VALUE"],
    "": ["must be KEY=VALUE"],
    "=x": ["must be KEY=VALUE"],
    "loss.temperature=(1": ["cannot be parsed", "quotes"],
    "loss.temperature=[1": ["cannot be parsed", "quotes"],
    "views.size=3)": ["cannot be parsed", "quotes"],
    "'x'=1": ["cannot be parsed"],
    "loss.temperature=0.1,0.5": ["add -m for a sweep"],
    "seed=range(1,3)": ["add -m for a sweep"],
    "loss.temperature=${nope}": ["loss.temperature", "nope"],
    "seed=${seed}": ["seed"],
    "loss.temperature=${oc.env:NO_SUCH_VARIABLE}": ["loss.temperature", "NO_SUCH_VARIABLE"],
    "loss.temperature=${nope:1}": ["loss.temperature", "nope"],
    "hydra.run.dir=${nope}": ["nope"],
    "hydra.run.dir=null": ["hydra.run.dir"],
    "hydra.run.dir=": ["hydra.run.dir is empty"],
    "hydra.sweep.dir=' '": ["hydra.sweep.dir is empty"],
    "hydra.job.chdir=maybe": ["hydra.job.chdir"],
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_a_helpful_message(override: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    message = str(caught.value)
    assert caught.value.code == 2
    assert len(message.splitlines()) <= LINES
    for part in MISTAKES[override]:
        assert part in message, message
    assert "append" not in message  # never the advice to add the typo


def test_a_mistake_among_correct_overrides_is_found() -> None:
    with pytest.raises(UserError, match=r"did you mean loss\.temperature"):
        compose(["model=resnet50", "optimizer=sgd", "loss.temprature=1", "seed=3"])


def test_two_options_of_one_group() -> None:
    with pytest.raises(UserError, match="model is chosen twice: resnet18 and resnet50"):
        compose(["model=resnet18", "seed=1", "model=resnet50"])
    assert compose(["model=resnet18", "model=resnet18"]).model.encoder.depth == 18


def test_arguments_of_targets_may_be_added() -> None:
    overrides = ["+loss.gather=false", "+trainer.gradient_clip_val=1.0", "+hydra.job.env_set.A=1"]
    cfg = compose(["optimizer=adamw", *overrides, "trainer.max_time={hours:1}", "optimizer.foreach=true"])
    assert (cfg.loss.gather, cfg.trainer.max_time.hours, cfg.optimizer.foreach) == (False, 1, True)
    cfg = compose(["hydra/launcher=slurm", "hydra.launcher.options={mail-type: END}"])
    assert cfg.hydra.launcher.options == {"mail-type": "END"}
    cfg = compose(["model=timm", "+model.encoder.img_size=32", "~trainer.deterministic"])
    assert cfg.model.encoder.img_size == 32


def test_the_arguments_of_the_replaced_class_are_dropped() -> None:
    cfg = compose(["optimizer._target_=torch.optim.RAdam", "optimizer.betas=[0.9,0.95]"])
    assert set(cfg.optimizer) == {"_target_", "_partial_", "lr", "weight_decay", "betas"}  # without AdamW's fused
    with pytest.raises(UserError, match=r"optimizer\.beta: unknown key; did you mean optimizer\.betas"):
        compose(["optimizer._target_=torch.optim.RAdam", "optimizer.beta=1"])


def test_a_misspelled_key_in_a_file_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nloss:\n  temprature: 0.1\n")
    with pytest.raises(UserError, match=r"loss\.temprature: unknown key; did you mean loss\.temperature"):
        compose([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])


@pytest.mark.parametrize("target", FILES)
def test_the_arguments_in_the_source_are_those_of_the_class(target: str) -> None:
    package, _, name = target.rpartition(".")
    assert written_arguments(target) == arguments_of(getattr(importlib.import_module(package), name))
