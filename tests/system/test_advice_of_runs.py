"""What a run advises at its end, when it stops or fails, and when it is resumed, works when it is followed."""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import advice
from conftest import OVERRIDES, small_images
from simclr_lightning.app.config.quoting import quote_paths
from simclr_lightning.app.runs.run import locked, reached_limits
from simclr_lightning.app.training import trainer
from simclr_lightning.app.training.signals import KeepSignals
from simclr_lightning.cli import main
from simclr_lightning.loggers import sync_command
from simclr_lightning.run_folder import read_summary, typed
from simclr_lightning.stopping import STOP

NAME = "a run's"  # of the folder: a shell needs quotes for it
QUICK = (*OVERRIDES, "data.path=images.npz", "callbacks.online.every_n_epochs=0")
Say = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with images and a finished run of two steps, and what the run printed."""
    place = tmp_path_factory.mktemp("advice")
    images, labels = small_images(88)
    parts = {"train_images": images[:64], "train_labels": labels[:64]}
    np.savez(place / "images.npz", **parts, test_images=images[64:], test_labels=labels[64:])
    (place / "pics").mkdir()
    for number in range(4):
        Image.fromarray(images[number]).save(place / "pics" / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        printed = _printed(("train", *QUICK, f"hydra.run.dir={NAME}", "trainer.max_steps=2"), code=0)
    return place, printed


def _printed(words: tuple[str, ...], *, code: int) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        found = main(list(words))
    assert found == code, out.getvalue()
    return out.getvalue()


@pytest.fixture
def say(made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """The program in a copy of the folder: say("train", "key=value", code=1) -> what it printed."""
    shutil.copytree(made[0], tmp_path / "copy")
    saved = tmp_path / "copy" / NAME / ".hydra/config.yaml"
    saved.write_text(saved.read_text().replace(str(made[0]), str(tmp_path / "copy")))
    monkeypatch.chdir(tmp_path / "copy")
    return lambda *words, code=0: _printed(words, code=code)


def taken(pattern: str, printed: str) -> str:
    """Return what the pattern's only group takes from what was printed."""
    (found,) = advice.taken(pattern, printed)
    return found


def typed_words(line: str) -> list[str]:
    """Return the arguments of a ``simclr`` command, as a shell makes them of the line."""
    program, *words = shlex.split(line)
    assert program == "simclr"
    return words


def test_the_command_to_resume_names_the_limit_that_ended_the_run(made: tuple[Path, str], say: Say) -> None:
    line = taken(r"^ +resume +(.+)$", made[1])
    say(*typed_words(line.replace("=N", "=3")))
    assert read_summary(Path(NAME))["steps"] == 3
    (limit,) = (word.partition("=")[0] for word in typed_words(line) if word.endswith("=N"))
    assert taken(r"to train longer, raise (.+)$", say("train", f"ckpt_path={NAME}")) == limit
    # Four steps are an epoch: with so many allowed, the epochs end the run.
    printed = say("train", f"ckpt_path={NAME}", f"{limit}=9", "trainer.max_epochs=1")
    assert taken(r"^ +resume .+ (\S+)=N$", printed) == "trainer.max_epochs"


def test_the_commands_to_evaluate_and_to_embed_work(made: tuple[Path, str], say: Say) -> None:
    say(*typed_words(taken(r"^ +evaluate +(.+)$", made[1])), "protocol=knn")
    say(*typed_words(taken(r"^ +embed +(.+)$", made[1]).replace("IMAGES", "pics").replace("OUT", "h")))
    assert Path("h.npz").exists()


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("steps", [4, 8])
def test_a_run_goes_on_when_the_limits_that_are_named_are_raised(epochs: int, steps: int) -> None:
    for most_epochs in (1, 2, 3):
        for most_steps in (-1, 4, 8, 12):
            limits = {"max_epochs": most_epochs, "max_steps": most_steps}
            named = reached_limits(OmegaConf.create({"trainer": limits}), epochs=epochs, steps=steps)
            ended = most_epochs <= epochs or 0 <= most_steps <= steps
            assert bool(named) == ended
            raised = limits | {key.removeprefix("trainer."): 99 for key in named}
            assert raised["max_epochs"] > epochs
            assert raised["max_steps"] < 0 or raised["max_steps"] > steps


@pytest.mark.parametrize("name", ["it's", "a b", "last", "null", "-x", "~y", "'q'", "a=b,c", "${x}", "$HOME", "[1]"])
def test_a_printed_folder_is_read_as_the_same_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), tmp_path / name):
        (word,) = shlex.split(f"ckpt_path={typed(path)}")
        (quoted,) = quote_paths([word])
        assert quoted != word  # it is no keyword
        (argument,) = shlex.split(typed(path))
        assert (Path.cwd() / argument) == tmp_path / name
        assert not argument.startswith("-")


def test_the_command_to_upload_names_the_folders(tmp_path: Path) -> None:
    folder = tmp_path / NAME / "wandb" / "offline-run-1"
    folder.mkdir(parents=True)
    command = sync_command(tmp_path / NAME)
    assert command is not None
    assert shlex.split(command) == ["wandb", "sync", str(folder)]


def test_a_folder_that_holds_a_run_can_be_gone_on_with_or_left_alone(say: Say) -> None:
    printed = say("train", *QUICK, f"hydra.run.dir={NAME}", code=1)
    assert "is finished" in say("train", *shlex.split(taken(r"resume that run: (.+)$", printed)))
    say("train", *QUICK, f"{taken(r'another (hydra.run.dir=)DIR', printed)}other", "dry_run=true")


def test_a_resume_that_is_refused_names_what_allows_it(say: Say) -> None:
    go_on = ("train", f"ckpt_path={NAME}", "trainer.max_steps=3")
    force = taken(r"add (force=\w+)", say(*go_on, "optimizer.lr=0.001", code=1))
    say(*go_on, "optimizer.lr=0.001", force, "dry_run=true")
    weights = taken(r"weights: (.+)$", say(*go_on, "model.projector.layers=2", code=1))
    say("train", *QUICK, "model.projector.layers=2", *shlex.split(weights), "dry_run=true")
    assert "model.weights" not in say(*go_on, "model.encoder.width=0.25", code=1)  # they would not fit
    images, labels = small_images(64, seed=1)
    np.savez("images.npz", train_images=images, train_labels=labels)
    say(*go_on, taken(r"add (force=\w+)", say(*go_on, code=1)))


def test_a_stopped_run_goes_on_as_it_says(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(KeepSignals):
        def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
            STOP.received.append(15)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "KeepSignals", Interrupted)
        printed = say("train", *QUICK, "hydra.run.dir=stop it's", "trainer.max_steps=2", code=143)
    say(*typed_words(taken(r"^  (.+ckpt_path=.+)$", printed)))
    assert read_summary(Path("stop it's"))["status"] == "finished"


def test_a_run_with_nan_goes_on_from_its_checkpoint_or_starts_again_as_it_says(say: Say) -> None:
    wild = ("optimizer.lr=1000", "optimizer.weight_decay=1000", "schedule.rule=constant", "schedule.warmup_epochs=0")
    wild += ("trainer.max_steps=20", "trainer.max_epochs=9", "callbacks.checkpoints.every_n_epochs=9")
    calm = ("optimizer.lr=0.001", "optimizer.weight_decay=0", "trainer.max_steps=3")
    printed = say("train", f"ckpt_path={NAME}", *wild, "force=true", code=1)
    words = shlex.split(taken(r"then resume with (ckpt_path=.+)$", printed))
    say("train", *words, *calm)
    printed = say("train", *QUICK, "hydra.run.dir=new", *wild, code=1)
    assert taken(r"then (start again)$", printed)
    say("train", *QUICK, "hydra.run.dir=new", *calm, "dry_run=true")


def test_what_evaluation_advises_works(say: Say) -> None:
    run = ("evaluate", NAME, "protocol=knn")
    most = taken(r"larger than the (\d+) labeled", say(*run, "knn.k=100", code=1))
    say(*run, f"knn.k={most}")
    name = taken(r"did you mean (\w+)", say("evaluate", NAME, "protocol=knnn", code=2))
    say("evaluate", NAME, f"protocol={name}")
    assert "remove model=" in say(*run, "model=tiny", code=2)
    semi = ("protocol=semi", "semi.epochs=[1,1]")
    start = taken(r"(semi.start=h)", say("evaluate", f"{NAME}/exported", *semi, "semi.start=1", code=1))
    say("evaluate", f"{NAME}/exported", *semi, start)
    most = taken(r"h or 1 to (\d)", say("evaluate", NAME, *semi, "semi.start=3", code=1))
    say("evaluate", NAME, *semi, f"semi.start={most}")


def test_messages_about_images_name_no_key_where_none_is_taken(say: Say) -> None:
    for number, name in enumerate(("deep", "empty", "large")):
        shutil.copytree("pics", f"{name}/c{number}")
    Image.fromarray(np.full((12, 12), 2000, np.uint16)).save("deep/c0/0.png")
    Path("empty/c1/0.png").write_bytes(b"")
    for name, way_out in (("deep", "save it with 8 bits"), ("empty", "remove or replace it")):
        for words in (("embed", NAME, name, "h.npz"), ("search", NAME, name)):
            printed = say(*words, code=1)
            assert way_out in printed
            assert "data." not in printed
        printed = say("evaluate", NAME, "transfer=[folder]", f"paths.folder={name}", code=1)
        assert "data.dataset" not in printed


def test_what_embed_and_search_advise_works(say: Say) -> None:
    say("embed", NAME, "pics", "h.npz")
    force = taken(r"or (--force) to overwrite", say("embed", NAME, "pics", "h.npz", code=1))
    say("embed", NAME, "pics", "h.npz", force)
    printed = say("search", NAME, "pics", "--threshold", "1")
    lower = taken(r"; lower (\S+) to find", printed)
    assert "pairs with a cosine" in say("search", NAME, "pics", lower, "0.01")
    printed = say("export", NAME, f"{NAME}/exported", code=1)
    say("export", NAME, f"{NAME}/exported", taken(r"or (--force) to overwrite", printed))


def test_a_resumed_run_is_not_sent_to_another_folder(say: Say) -> None:
    with locked(Path(NAME)):
        printed = say("train", f"ckpt_path={NAME}", "trainer.max_steps=3", code=1)
    assert "wait for it" in printed
    assert "hydra.run.dir" not in printed
