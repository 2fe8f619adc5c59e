"""The commands that the program prints name the program as the user typed it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import OVERRIDES, small_images
from simclr_lightning.app import commands
from simclr_lightning.app.commands import remember_program, simclr_command, train_command
from simclr_lightning.app.errors import UserError
from simclr_lightning.app.runs.locate import locate_checked

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only Python and the only ``simclr`` that the shell finds."""
    for name in ("python", "simclr", "elsewhere"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setenv("SIMCLR_PROGRAM", "")
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("program", "train", "simclr"),
    [
        ("train.py", "python train.py", "simclr"),
        ("/my repo/train.py", "python '/my repo/train.py'", "simclr"),
        ("{bin}/simclr", "simclr train", "simclr"),
        ("/venv/bin/simclr", "/venv/bin/simclr train", "/venv/bin/simclr"),
        ("/x/cli/__main__.py", "python -m simclr_lightning.cli train", "python -m simclr_lightning.cli"),
        ("/x/pytest/__main__.py", "simclr train", "simclr"),
    ],
)
def test_a_command_names_the_program(
    program: str, train: str, simclr: str, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program.format(bin=bin_folder), "seed=1"])
    assert (train_command(), simclr_command()) == (train, simclr)
    remember_program()  # and a process that this one starts prints the same
    monkeypatch.setenv("SIMCLR_PROGRAM", sys.argv[0])
    monkeypatch.setattr(sys, "argv", ["/x/cli/__main__.py"])
    assert (train_command(), simclr_command()) == (train, simclr)


def test_a_python_or_program_that_the_shell_does_not_find_is_named_by_its_path(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (bin_folder / "simclr").unlink()
    assert simclr_command() == "python -m simclr_lightning.cli"
    (bin_folder / "python").rename(bin_folder / "python3")
    assert train_command() == "python3 train.py"
    monkeypatch.setattr(sys, "executable", "/other env/bin/python3")
    assert train_command() == "'/other env/bin/python3' train.py"
    assert commands.shutil.which("python3")


def test_a_run_with_a_trusted_package_of_the_current_folder_is_resumed_by_the_printed_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processes: sys.path depends on how Python was started, also in the ranks.
    images, labels = small_images(88)
    np.savez(tmp_path / "images.npz", train_images=images[:64], train_labels=labels[:64])
    (tmp_path / "my_loss").mkdir()
    (tmp_path / "my_loss/__init__.py").write_text(
        "from torch import nn\nclass Loss(nn.Module):\n def forward(self, a, b): return (a - b).square().mean()\n"
    )
    words = (*OVERRIDES, "data.path=images.npz", "hydra.run.dir=run", "trainer.max_steps=1", "trainer.devices=2")
    own = ("loss._target_=my_loss.Loss", "~loss.temperature", "trusted=[my_loss]", "callbacks.online.every_n_epochs=0")
    line = shlex.join(["python", str(ROOT / "train.py"), *words, *own])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"^ +resume +(.+)$", done.stdout, re.MULTILINE)
    assert found
    assert found[1] == f"python {ROOT}/train.py ckpt_path=run 'trusted=[my_loss]' trainer.max_steps=N"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    overrides = shlex.split(found[1].replace("=N", "=2"))[2:]
    assert locate_checked(overrides).cfg.loss._target_ == "my_loss.Loss"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    monkeypatch.delitem(sys.modules, "my_loss")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    with pytest.raises(
        UserError, match=rf"there is no package my_loss[^$]*\nthis run was started in {re.escape(str(tmp_path))}$"
    ):
        locate_checked(["ckpt_path=../run", *overrides[1:]])
