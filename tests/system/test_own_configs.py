"""The user's own configuration files: --config-dir and hydra.searchpath hold for every way to start a run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from simclr_lightning.app.config import composition
from simclr_lightning.app.config.search_path import with_search_path
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.launch import local
from simclr_lightning.app.launch.jobs import command
from simclr_lightning.app.launch.slurm import Command
from simclr_lightning.app.runs.locate import locate_checked

Program = Callable[..., int]
EXPERIMENT = """\
# @package _global_
defaults:
  - override /model: mine
  - override /data: mine
seed: 5
views: {size: 8}
trainer: {max_epochs: 1, accelerator: cpu}
callbacks: {online: {every_n_epochs: 0}}
"""
FLAG = ("--config-dir", "own (1)")


@pytest.fixture
def own(npz: Path) -> Path:
    """A folder of the user with an experiment, a model and a data set."""
    folder = npz.parent / "own (1)"
    array = yaml.safe_load((composition.conf_folder() / "data/array.yaml").read_text())
    files = {
        "experiment/mine": EXPERIMENT,
        "model/mine": "defaults: [tiny]\nencoder: {width: 0.0625}\n",
        "data/mine": yaml.safe_dump({**array, "path": str(npz), "batch_size": 16}),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_run_of_the_users_own_files_goes_on_from_another_folder(
    own: Path, simclr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert simclr("train", *FLAG, "experiment=mine", "hydra.run.dir=run", "trainer.max_steps=1") == 0
    saved = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert (saved["model"]["encoder"]["width"], saved["seed"]) == (0.0625, 5)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    go_on = ("ckpt_path=../run", "trainer.max_steps=2")
    assert locate_checked(go_on).cfg.model.encoder.width == 0.0625
    for words in (("experiment=cifar10",), ("model=tiny",)):
        with pytest.raises(UserError, match=r"another configuration|no state for that"):
            locate_checked([*go_on, *words])
    with pytest.raises(UserError, match="no such option"):
        locate_checked([*go_on, f"hydra.searchpath=['{tmp_path}']"])
    own.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"there is no folder {re.escape(str(own))}"):
        locate_checked(go_on)
    assert simclr("train", *go_on, "--config-dir", "../moved") == 0
    run = locate_checked(["ckpt_path=../run", "trainer.max_steps=3"])  # the folder is saved
    assert run.cfg.model.encoder.width == 0.0625
    assert run.overrides[-3] == f"hydra.searchpath=['{tmp_path}/moved']"


def test_the_conf_of_an_installed_package_takes_the_users_files_too(
    own: Path, simclr: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site-packages/simclr_lightning"
    shutil.copytree(composition.conf_folder(), package / "conf")
    monkeypatch.setattr(composition, "__file__", str(package / "app/config/composition.py"))
    assert composition.conf_folder() == package / "conf"
    assert simclr("train", *FLAG, "experiment=mine", "dry_run=true") == 0
    assert simclr("train", *FLAG, "experiment=mine", "--cfg", "job", "--package", "seed") == 0
    assert capsys.readouterr().out.endswith("\n5\n")
    assert simclr("train", "-m", *FLAG, "experiment=mine", "seed=1,2", "hydra.sweep.dir=sweep", "dry_run=true") == 0


def test_jobs_of_a_sweep_read_the_users_files(
    own: Path, simclr: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[list[str]] = []

    def recorded(overrides: list[str], folder: Path) -> list[str]:
        lines.append(command(overrides, folder))
        lines.append(Command(overrides, folder, 1, 1).line())  # of a job on SLURM
        return ["true"]

    monkeypatch.setattr(local, "command", recorded)
    words = ("train", "-m", *FLAG, "hydra.sweep.dir=sweep", "experiment=mine")
    assert simclr(*words, "model=glob(mi*)", "trainer.max_steps=1,2") == 1  # the jobs leave no summary
    assert len(lines) == 4
    capsys.readouterr()
    for line in lines:
        monkeypatch.chdir(own.parent / "sweep")
        assert simclr(*line[line.index("train") :], "--cfg", "job", "--package", "model.encoder.width") == 0
        assert capsys.readouterr().out == "0.0625\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--config-dir", "none"), "there is no folder {here}/none"),
        (("hydra.searchpath=[none]",), "there is no folder {here}/none"),
        (("hydra.searchpath=none",), "such as hydra.searchpath=[DIR]"),
        (("hydra.searchpath=[s3://a]",), "s3://a is not a folder"),
        (("hydra.searchpath=[pkg://json]",), "add trusted=[json]"),
        (("hydra.searchpath=[pkg://json]", "trusted=[json]"), "json is not your own package"),
        ((*FLAG, "experiment=plain"), "must be: # @package _global_"),
        ((*FLAG, "more=x"), "write +more=x"),
        ((*FLAG, "experiment=min"), "did you mean mine?"),
    ],
)
def test_a_folder_or_file_that_cannot_be_read_is_named(
    words: tuple[str, ...], says: str, own: Path, simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "experiment/plain.yaml").write_text("seed: 3\n")
    (own / "more").mkdir()
    (own / "more/x.yaml").write_text("# @package _global_\nseed: 3\n")
    for sweep in ((), ("-m", "seed=1,2")):
        assert simclr("train", *sweep, *words, "dry_run=true") == 2
        said = capsys.readouterr().err
        assert says.format(here=Path.cwd()) in said
        assert said.count("\n") <= 3
    assert simclr("train", *FLAG, "+more=x", "--cfg", "job", "--package", "seed") == 0
    assert capsys.readouterr().out == "3\n"


@pytest.mark.parametrize("start", [(), ("dry_run=true",), ("-m", "seed=1,2"), ("--help",), ("--cfg", "job")])
def test_the_users_files_may_make_only_what_is_allowed(
    start: tuple[str, ...], own: Path, simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    made = own.parent / "made"
    args = f"args: [touch, '{made}']"
    evil = {
        "logging": f"hydra: {{hydra_logging: {{version: 1, formatters: {{x: {{(): subprocess.Popen, {args}}}}}}}}}",
        "callback": f"hydra: {{callbacks: {{x: {{_target_: subprocess.Popen, {args}}}}}}}",
        "target": f"loss: {{_target_: subprocess.Popen, {args}}}",
    }
    for name, text in evil.items():
        (own / f"experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
        if name == "target" and start[:1] in (("--help",), ("--cfg",)):
            continue  # they only print it
        assert simclr("train", *FLAG, f"experiment={name}", "data=array", "data.path=none.npz", *start) == 2
        assert "subprocess.Popen: a configuration may not make this" in capsys.readouterr().err
    assert not made.exists()


def test_the_search_path_is_one_override_with_absolute_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["hydra.searchpath=[x]", "seed=1", "hydra.searchpath=[a,'file://b c','/d',pkg://p.q,a]"]
    (found,) = with_search_path(given, "e")[1:]
    here = str(tmp_path)
    assert found == f"hydra.searchpath=['{here}/e','{here}/a','{here}/b c','/d','pkg://p.q']"
    assert with_search_path([found]) == [found]
    assert with_search_path(["seed=1"]) == ["seed=1"]


def test_evaluation_reads_the_users_data(own: Path, simclr: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert simclr("evaluate", "run", *FLAG, "data=mine", "protocol=knn") == 1
    assert "run does not exist" in capsys.readouterr().err  # the configuration is right, and there is no such run
    assert simclr("evaluate", "run", "--cfg", "job") == 2
    assert "no flag but --config-dir" in capsys.readouterr().err
