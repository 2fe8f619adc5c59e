"""The examples of docs/bring_your_own.md: each is written as a user's package and run through the command line."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from conftest import OVERRIDES

PAGE = Path(__file__).parents[1] / "docs" / "bring_your_own.md"
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
FILES = {code.split()[1]: code for kind, code in BLOCKS if kind == "python" and code.startswith("# mypkg/")}
SCRIPTS = [code for kind, code in BLOCKS if kind == "python" and not code.startswith("# mypkg/")]
COMMANDS = [shlex.split(line) for kind, code in BLOCKS if kind == "bash" for line in code.splitlines()]
RESUMES = [arguments[2:] for arguments in COMMANDS if "ckpt_path=RUN" in arguments]
TRAININGS = [own[2:] for own in COMMANDS if own[1] == "train" and own[2:] not in RESUMES]


class Program(NamedTuple):
    run: Callable[..., int]
    images: Path


@pytest.fixture
def program(
    simclr: Callable[..., int], npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    """The command line, in a folder with the package of the page."""
    for name, code in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield Program(simclr, npz)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypkg"]:
        del sys.modules[name]


def train(program: Program, overrides: list[str]) -> dict[str, Any]:
    """Train two steps on small images and return the summary."""
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    own = [
        override for override in (*OVERRIDES, f"data.path={program.images}") if override.partition("=")[0] not in given
    ]
    if "data" in given:
        own = [override for override in own if not override.startswith("data.path=")]
    if "model" in given:
        own = [override for override in own if not override.startswith("model.")]
    assert program.run("train", *own, *overrides, "trainer.max_steps=2", "hydra.run.dir=RUN") == 0
    summary: dict[str, Any] = json.loads(Path("RUN/summary.json").read_text())
    return summary


def test_the_page_has_an_example_of_every_part() -> None:
    parts = ("losses", "images", "transforms", "edges", "noise", "protocols", "encoders", "optimizers", "callbacks")
    assert FILES.keys() == {f"mypkg/{name}.py" for name in parts}
    assert len(TRAININGS) == len(parts)  # all but the protocol, and a callback of Lightning


@pytest.mark.parametrize("overrides", TRAININGS, ids=[arguments[0] for arguments in TRAININGS])
def test_every_part_trains_from_the_command_line(program: Program, overrides: list[str]) -> None:
    summary = train(program, overrides)
    assert summary["status"] == "finished"
    assert summary["steps"] == 2
    saved = Path("RUN/.hydra/config.yaml").read_text()
    target = next(override.partition("=")[2] for override in overrides if "_target_" in override)
    assert f"_target_: {target}\n" in saved


@pytest.mark.parametrize("arguments", [arguments for arguments in COMMANDS if arguments[1] == "evaluate"])
def test_the_evaluations_of_the_page_write_their_scores(program: Program, arguments: list[str]) -> None:
    overrides = next(own for own in TRAININGS if "model=custom" in own)
    train(program, overrides)
    assert program.run(*arguments[1:], "knn.k=5", "accelerator=cpu") == 0
    found = json.loads(Path("RUN/evaluation.json").read_text())
    key = "centroid_top1" if "centroid" in arguments[3] else "linear_top1"
    assert 0 <= found[key] <= 1
    assert found["feature_dim"] == 16


def test_the_scripts_and_the_other_commands_of_the_page_run(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = next(own for own in TRAININGS if "model=custom" in own)
    train(program, overrides)
    Path("IMAGES").mkdir()
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (12, 12), color).save(Path("IMAGES", name))
    for resume in RESUMES:
        assert program.run("train", *resume, "trainer.max_steps=3") == 0
        assert json.loads(Path("RUN/summary.json").read_text())["steps"] == 3
    for arguments in COMMANDS:
        if arguments[1] in ("embed", "search", "export"):
            assert program.run(*arguments[1:]) == 0
    for code in SCRIPTS:
        quiet = code.replace("L.Trainer(", 'L.Trainer(accelerator="cpu", max_steps=2, logger=False, ')
        quiet = quiet.replace("max_epochs=1", "enable_checkpointing=False, enable_progress_bar=False")
        exec(compile(quiet, "docs/bring_your_own.md", "exec"), {})


def test_the_loss_of_the_page_is_its_definition(program: Program) -> None:
    import torch
    from mypkg.losses import Decoupled

    torch.manual_seed(0)
    z_a, z_b = torch.randn(2, 4, 3, dtype=torch.float64)
    rows = [z / z.norm() for z in (*z_a, *z_b)]
    total = 0.0
    for i, row in enumerate(rows):  # paper of Yeh et al., equation 6, as a loop
        others = [torch.exp(row @ other / 0.2) for j, other in enumerate(rows) if j % 4 != i % 4]
        total += float(torch.log(sum(others)) - row @ rows[(i + 4) % 8] / 0.2)  # type: ignore[arg-type]
    assert float(Decoupled(0.2)(z_a, z_b)) == pytest.approx(total / 8)
