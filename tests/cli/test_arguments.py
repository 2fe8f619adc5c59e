"""Arguments as scripts, trackers and word processors write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from simclr_lightning.app.errors import UserError
from simclr_lightning.cli.arguments import cleaned


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["train", "--data.batch_size=64", "--seed=3", "--model=tiny"], ["data.batch_size=64", "seed=3", "model=tiny"]),
        (["train", "-loss.temperature=0.5", "--+trainer.x=1"], ["loss.temperature=0.5", "+trainer.x=1"]),
        (["train", "-m", "--multirun", "--help"], ["-m", "--multirun", "--help"]),
        (["train", "--cfg=job", "--cfg", "job"], ["--cfg=job", "--cfg", "job"]),
        (["train", "--config-dir", "here", "--config-dir=a.b"], ["--config-dir", "here", "--config-dir=a.b"]),
        (["evaluate", "run", "--protocol=knn"], ["run", "protocol=knn"]),
        (["pack", "in", "out", "--short_side=64\r"], ["in", "out", "short_side=64"]),
        (["embed\r\n", "run", "in", "out.npz\r"], ["run", "in", "out.npz"]),
        (["search", "run", "in", "--query=a.png"], ["run", "in", "--query=a.png"]),
        (
            ["train", "data.path=été – “été”/図 a", "logger.project=a–b"],
            ["data.path=été – “été”/図 a", "logger.project=a–b"],
        ),
        (["train", "loss.temperature=-1", "~ema", "+a=1"], ["loss.temperature=-1", "~ema", "+a=1"]),
    ],
)
def test_arguments_are_as_they_were_meant(given: list[str], meant: list[str]) -> None:
    assert cleaned(given)[1:] == meant


@pytest.mark.parametrize(
    ("given", "name", "plain"),
    [
        (["train", "–m"], "en dash (U+2013)", "type -m"),
        (["train", "—cfg", "job"], "em dash (U+2014)", "type -cfg"),
        (["search", "run", "in", "–query", "a.png"], "en dash", "type -query"),
        (["train", "data.batch\u00a0size=64"], "no-break space (U+00A0)", "type data.batch size=64"),
        (["train", "\u200bseed=1"], "zero width space", "type seed=1"),
        (["train", "\ufeffseed=1"], "zero width no-break space", "type seed=1"),
        (["train", "loss.temperature=−0.5"], "minus sign (U+2212)", "type loss.temperature=-0.5"),
        (["train", "seed=1\u00a0"], "no-break space", "type seed=1"),
        (["train", "data.path=“my images”"], "left double quotation mark", 'type data.path="my images"'),
        (["train", "‘data.path=my images’"], "left single quotation mark", "type 'data.path=my images'"),
        (["embed", "run", "“in”", "out.npz"], "left double quotation mark", 'type "in"'),
    ],
)
def test_letters_that_only_look_right_are_named(given: list[str], name: str, plain: str) -> None:
    with pytest.raises(UserError) as found:
        cleaned(given)
    assert name in str(found.value)
    assert plain in str(found.value)
    assert found.value.code == 2


def test_a_file_of_such_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("–“a”").touch()
    assert cleaned(["embed", "–“a”"]) == ["embed", "–“a”"]
    assert cleaned(["train", "data.path=–“a”"]) == ["train", "data.path=–“a”"]


def test_a_key_without_its_value_is_explained(simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert simclr("train", "--data.batch_size", "64") == 2
    assert "data.batch_size=VALUE" in capsys.readouterr().err
    assert simclr("train", "--data.batch_sise=64") == 2
    assert "did you mean data.batch_size?" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["", "+", "++"])
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.accumulate_grad_batches=2", "use micro_batch_size"),
        ("trainer.strategy=fsdp", "use trainer.strategy=ddp"),
        ("trainer.limit_val_batches=2", "use callbacks.online.every_n_epochs"),
        ("data.seed=3", "use seed"),
        ("optimizer.maximize=true", "the program sets this itself"),
    ],
)
def test_keys_that_the_program_sets_are_explained(
    start: str, override: str, says: str, simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("train", f"{start}{override}") == 2
    said = capsys.readouterr().err
    assert says in said
    assert override.partition("=")[0] in said
    assert "unknown" not in said


def test_the_key_without_its_group_is_explained_too(
    simclr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("train", "accumulate_grad_batches=2") == 2
    assert "use micro_batch_size" in capsys.readouterr().err
