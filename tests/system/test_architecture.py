"""The shape of the house: import directions, the start of the program, conf/ and the wheel."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import simclr_lightning
from simclr_lightning.app.config import composition
from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.runs.locate import locate_checked

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "simclr_lightning"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def imports(path: Path) -> list[tuple[ast.AST, ast.AST, str]]:
    """Every import of a file with the statement that holds it, and the module's name."""
    found = []
    for parent in ast.walk(ast.parse(path.read_text())):
        for node in ast.iter_child_nodes(parent):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            found += [(parent, node, name) for name in names]
    return found


def test_no_import_of_this_package_hides_in_a_function() -> None:
    hidden = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {name}"
        for path in PACKAGE.rglob("*.py")
        for parent, node, name in imports(path)
        if name.split(".")[0] == "simclr_lightning"
        and not isinstance(parent, ast.Module)
        and not (path.name == "__init__.py" and isinstance(parent, ast.If))  # lazy names (lazy.py)
    ]
    assert hidden == []


def test_only_one_module_looks_for_near_names() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") for _, _, name in imports(path) if name == "difflib"}
    assert users == {"near_names.py"}


def test_no_command_imports_another() -> None:
    shared = {"simclr_lightning.cli.guard", "simclr_lightning.cli.parser"}
    commands = [path for path in (PACKAGE / "cli").glob("*.py") if not path.name.startswith("_")]
    used = {name for path in commands for _, _, name in imports(path) if name.startswith("simclr_lightning.cli")}
    assert used <= shared


def test_no_file_is_long_and_no_package_is_a_quarter_of_the_code() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path): count for path, count in lines.items() if count > 300} == {}
    packages = [folder for folder in PACKAGE.iterdir() if folder.is_dir()]
    sizes = {folder.name: sum(count for path, count in lines.items() if folder in path.parents) for folder in packages}
    assert max(sizes.values()) < 0.25 * sum(lines.values()), sizes


def test_no_name_of_a_lazy_package_is_a_module_of_it() -> None:
    """Python sets a package's attribute when it imports a module, which would hide a function of the same name."""
    for path in PACKAGE.rglob("__init__.py"):
        modules = {other.stem for other in (*path.parent.glob("*.py"), *path.parent.glob("*/")) if other != path}
        listed = {
            name.name
            for parent, node, _ in imports(path)
            if isinstance(parent, ast.If) and isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert not modules & listed, path


def test_wandb_is_imported_by_its_logger_alone_and_hydra_by_two_packages() -> None:
    found = {
        package: {
            str(path.relative_to(PACKAGE).parent if package == "hydra" else path.relative_to(PACKAGE))
            for path in PACKAGE.rglob("*.py")
            for _, _, name in imports(path)
            if name.split(".")[0] == package
        }
        for package in ("wandb", "hydra")
    }
    assert found["wandb"] == {"loggers/wandb.py"}
    assert found["hydra"] == {"app/config", "app/launch"}


def test_a_run_is_composed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    real = composition._load
    monkeypatch.setattr(composition, "_load", lambda *args: calls.append(args[1]) or real(*args))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parent / "old_runs", tmp_path / "old")
    locate_checked(["experiment=null"])
    assert len(calls) == 1
    locate_checked(["ckpt_path=old/finished", "trainer.max_epochs=3"])
    assert len(calls) == 2


def test_the_program_answers_before_torch_is_imported() -> None:
    code = (
        "import sys; from simclr_lightning.cli import main\n"
        "for key in ('loss.temprature', 'trainer.max_step', 'optimizer.weight_deca', 'schedule.rul'):\n"
        " assert main(['train', f'{key}=1']) == 2\n"
        " assert 'torch' not in sys.modules and 'lightning' not in sys.modules, key"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("loss.temperature", "trainer.max_steps", "optimizer.weight_decay", "schedule.rule"):
        assert f"did you mean {name}?" in done.stderr


def test_every_public_name_is_there_and_sorted() -> None:
    assert simclr_lightning.__all__ == sorted(simclr_lightning.__all__)
    assert all(getattr(simclr_lightning, name) is not None for name in simclr_lightning.__all__)
    assert set(simclr_lightning.__all__) <= set(dir(simclr_lightning))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = simclr_lightning.nothing


def test_train_py_is_a_docstring_and_one_call() -> None:
    body = ast.parse((ROOT / "train.py").read_text()).body
    assert [type(node).__name__ for node in body] == ["Expr", "Import", "ImportFrom", "If"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_opens_with_its_facts_and_takes_other_data(name: str) -> None:
    head = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert head[0] == "# @package _global_"
    assert f"experiment={name}" in head[1]
    assert head[1].startswith(("# python train.py experiment=", "# python train.py -m experiment="))
    assert any(line.startswith("# Hardware:") for line in head)
    assert any(line.startswith("# Expected:") for line in head)
    assert compose([f"experiment={name}", "data=photos"]).data.dataset._target_.endswith("photos")
    paths = ["data.path=DIR"] if name == "imagenet" else []
    compose([f"experiment={name}", *paths])


def test_cifar_is_not_trained_with_imagenets_stem() -> None:
    """Mistake 6: CIFAR with ImageNet's stem, or with blur."""
    small = compose(["experiment=cifar10"])
    assert small.model.encoder.stem == "cifar"
    assert (small.views.size, small.views.strength, small.views.blur) == (32, 0.5, 0.0)
    assert (small.data.batch_size, small.loss.temperature, small.optimizer.lr) == (512, 0.5, 1.0)
    assert (small.schedule.rule, small.schedule.warmup_epochs, small.optimizer.weight_decay) == ("linear", 10, 1e-4)
    large = compose(["experiment=imagenet", "data.path=DIR"])
    assert large.model.encoder.stem == "imagenet"
    assert (large.views.size, large.views.strength, large.views.blur) == (224, 1.0, 0.5)


def test_the_wheel_holds_conf_and_runs_without_the_repository(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    conf = {f"simclr_lightning/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert conf <= names
    assert {"simclr_lightning/py.typed", "simclr_lightning/report/template.html.jinja"} <= names
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from simclr_lightning.app.config.composition import compose, conf_folder\n"
        "assert conf_folder().parts[-2:] == ('simclr_lightning', 'conf')\n"
        "print(compose(['experiment=cifar10']).data.batch_size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "512"), done.stderr
