"""What a message advises before any training works when it is followed to the letter.

Each case gives the wrong arguments, a pattern that takes the advice from the printed message, and the arguments that
follow it: ``{0}`` is what the pattern's first group took.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from advice import advised
from conftest import OVERRIDES
from simclr_lightning.app.config.arguments import SET_BY_PROGRAM
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.grammar import value_of
from simclr_lightning.app.config.keys import RULES
from simclr_lightning.app.config.plain import to_plain
from simclr_lightning.cli import COMMANDS
from simclr_lightning.global_batch import check_batch, check_micro_batch
from simclr_lightning.run_folder import flatten

Program = Callable[..., int]
ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "simclr_lightning"

NEAR = r"did you mean ([\w./]+)\?"
CONFIGURATIONS = [
    ("loss.temprature=0.5", NEAR, "{0}=0.5"),
    ("trainer.max_epoch=3", NEAR, "{0}=3"),
    ("hydra.launcher.jbs=2", NEAR, "{0}=2"),
    ("modle=tiny", NEAR, "{0}=tiny"),
    ("model=resnt50", NEAR, "model={0}"),
    ("experiment=cifar", NEAR, "experiment={0}"),
    ("hydra/launcher=slum", NEAR, "hydra/launcher={0}"),
    ("hydra/launcher=slum", r"the options are (\w+)", "hydra/launcher={0}"),
    ("hydra/launcher=basic", r"must be that of (\S+) or", "{0}"),
    ("model.encoder._target_=simclr_lightning.encoders.resnt", NEAR, "model.encoder._target_={0}"),
    ("model=timm model.encoder.name=resnet5", r"did you mean (\w+)", "model=timm model.encoder.name={0}"),
    ("+seed=1", r"write (\S+)$", "{0}"),
    ("+model=tiny", r"write (\S+)$", "{0}"),
    ("~model", r"its options are .*\b(tiny)\b", "model={0}"),
    ("++trainer.accumulate_grad_batches=2", r"use (\w+)$", "{0}=8"),
    ("loss.temperature=0.1,0.5", r"add (-m) for a sweep", "{0} loss.temperature=0.1,0.5 dry_run=true"),
    ("logger=wandb logger.tags=a,b", r"a list as (\S+), and", "logger=wandb {0}"),
    ("logger=wandb logger.group=a,b", r"a text with commas as (\S+)$", "logger=wandb {0}"),
    ("model.encoder.mean=[0,0,0]", r"(\S+) and (\S+) go together", "{0}=[0,0,0] {1}=[1,1,1]"),
    ("logger.name=wandb", r"choose the group, (\S+)$", "{0}"),
    ("hydra.launcher=2", r"its options with (\S+)$", "{0}simclr"),
    ("micro_batch_size=12", r"use (\d+), for example", "micro_batch_size={0}"),
    ("micro_batch_size=32", r"use (\d+), or null", "micro_batch_size={0}"),
    ("micro_batch_size=32", r"or (null)$", "micro_batch_size={0}"),
    ("trainer.devices=3", r"use (\d+) or \d+$", "trainer.devices=3 data.batch_size={0}"),
    ("trainer.devices=3", r"use \d+ or (\d+)$", "trainer.devices=3 data.batch_size={0}"),
    ("trainer.devices=2 data.batch_size=2", r"use (\d+) or more", "trainer.devices=2 data.batch_size={0}"),
    ("trainer.devices=4 trainer.sync_batchnorm=3", r"use (\d), for", "trainer.devices=4 trainer.sync_batchnorm={0}"),
    ("views.crop=x", r"must be one of (\w+)", "views.crop={0}"),
    ("ema=2", r"or (null)$", "ema={0}"),
    ("ema=None", r"write (\S+)$", "{0}"),
    ("trainer.strategy=fsdp", r"use (\S+), and", "{0}"),
    ("optimizer._target_=torch.optim.Muon", r"use (\S+ \S+)$", "{0}"),
    ("callbacks.foo=1", r"needs (callbacks\.NAME)", "{0}._target_=lightning.pytorch.callbacks.RichModelSummary"),
    ("model.projector.layers=7", r"from \d to (\d)$", "model.projector.layers={0}"),
    ("hydra.sweeper.params=1", r"such as (\S+)$", "-m {0} dry_run=true"),
    ("-m loss.temperature=interval(0.1,1)", r"add (hydra/sweeper=\S+)$", "-m loss.temperature=interval(0.1,1) {0} D"),
    (
        "-m loss.temperature=interval(0.1,1) hydra/sweeper=optuna callbacks.online.every_n_epochs=0",
        r"set (\S+) to (\d) or more",
        "-m loss.temperature=interval(0.1,1) hydra/sweeper=optuna {0}={1} D",
    ),
]


def followed(template: str, advice: tuple[str, ...]) -> list[str]:
    """Return the arguments that a shell makes of a template with the advice in it."""
    words = template.format(*advice)
    return shlex.split(words.replace(" D", " dry_run=true hydra.sweeper.n_trials=1"))


@pytest.mark.filterwarnings("ignore:.*Deprecated API features")  # Optuna's, of SQLAlchemy
@pytest.mark.parametrize(("wrong", "pattern", "right"), CONFIGURATIONS, ids=[case[0] for case in CONFIGURATIONS])
def test_the_advice_about_a_configuration_works(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str], wrong: str, pattern: str, right: str
) -> None:
    if "optuna" in wrong + pattern or "hydra/sweeper" in pattern:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    if "timm" in wrong:
        pytest.importorskip("timm")
    base = [word for word in OVERRIDES if not ("timm" in wrong and "width" in word)]
    # The images are looked for when the configuration is right; a sweep is then checked to its end.
    is_sweep = "-m" in f"{pattern} {right}"
    base.append(f"data.path={npz if is_sweep else 'missing.npz'}")
    assert simclr("train", *base, *wrong.split()) == 2
    code = simclr("train", *base, *followed(right, advised(capsys, pattern)))
    printed = "".join(capsys.readouterr())
    assert code == (0 if is_sweep else 1), printed
    assert ("all jobs are checked" if is_sweep else "missing.npz: there is no such file") in printed


@pytest.mark.parametrize("text", ["it's", "a(b", 'say "a"(', "back\\slash(", "both ' and \""])
def test_the_quotes_that_are_advised_give_the_text_itself(
    simclr: Program, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert simclr("train", "logger=wandb", f"logger.group={text}", "dry_run=true") == 2
    (advice,) = advised(capsys, r"in other quotes: (.+)$")
    assert value_of(shlex.split(advice), "logger.group") == text


def test_the_keys_to_use_instead_of_those_that_the_program_sets_are_in_the_configuration() -> None:
    cfg = to_plain(compose([*OVERRIDES, "data.path=x"]))
    names = {"hydra.run.dir", *cfg, *flatten(cfg)} | {name.rpartition(".")[0] for name in flatten(cfg)}
    for key, instead in SET_BY_PROGRAM.items():
        assert all(name.removesuffix(".*") in names for name in instead.split(" or ") if name), key


def test_every_option_that_the_message_about_a_key_lists_is_accepted() -> None:
    for key, rule in RULES.items():
        if rule.says.startswith("one of "):
            for option in re.split(r", (?:or )?| or ", rule.says.removeprefix("one of ")):
                assert rule.accepts(yaml.safe_load(option)) or rule.accepts(option), (key, option)


def test_the_sizes_of_batches_that_are_advised_are_accepted() -> None:
    for batch in range(2, 40):
        for devices in (1, 2, 3, 4, 8):
            for check, key in ((_micro, "micro"), (_batch, "batch")):
                for asked in range(1, 48):
                    if advice := check(asked, batch, devices):
                        assert check(*advice) is None, (key, asked, batch, devices)


def _micro(asked: int, batch: int, devices: int) -> tuple[int, int, int] | None:
    try:
        if batch % devices == 0 and batch >= 2 * devices:
            check_micro_batch(asked, batch_size=batch, devices=devices)
    except ValueError as error:
        found = re.search(r"use (\d+)", str(error))
        assert found
        return int(found[1]), batch, devices
    return None


def _batch(asked: int, images: int, devices: int) -> tuple[int, int, int] | None:
    try:
        check_batch(asked, images=images, devices=devices)
    except ValueError as error:
        found = re.search(r"use (?:at most )?(\d+)( devices)?", str(error))
        assert found
        if found[2]:
            return max(2, int(found[1]) * 2), images, int(found[1])
        if int(found[1]) > images:  # the images are looked at next
            return _batch(int(found[1]), images, devices)
        return int(found[1]), images, devices
    return None


def test_the_package_to_trust_is_trusted(
    simclr: Program, npz: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = "from conftest import SmallEncoder\ndef net(**options):\n    return SmallEncoder()\n"
    (tmp_path / "own_net.py").write_text(net)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["train", *OVERRIDES, f"data.path={npz}", "dry_run=true", "model.encoder._target_=own_net.net"]
    assert simclr(*words) == 2
    (advice,) = advised(capsys, r"add (trusted=\S+)")
    assert simclr(*words, advice.replace("PACKAGE", "own_net")) == 0


def test_every_extra_that_an_installation_is_advised_of_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named: list[str] = []
    for path in SRC.rglob("*.py"):
        text = path.read_text("utf-8")
        named += re.findall(r"simclr-lightning\[(\w+)\]", text)
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "require":
                package, _, *extra = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
                named += extra or [package]
    assert len(named) > 8
    assert set(named) <= extras.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_traceback_is_shown_as_advised(
    simclr: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def fail(*arguments: object) -> int:
        raise RuntimeError("unforeseen")

    module = __import__(f"simclr_lightning.cli.{command}", fromlist=["_main"])
    monkeypatch.setattr(module, "_main", fail)
    arguments = ["a", "b", "c.npz"] if command == "embed" else ["a", "b"]
    assert simclr(command, *arguments) == 1
    (advice,) = advised(capsys, r"the traceback: add (\S+)$")
    assert simclr(command, *arguments, advice) == 1
    assert "Traceback" in capsys.readouterr().err
