"""The user's package: trusted=[NAME] allows the classes that it defines, and no more."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from changed_configs import a_config, put
from omegaconf import DictConfig

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.validate import check_config, check_evaluation, check_targets
from simclr_lightning.app.errors import UserError


@pytest.fixture
def cfg() -> DictConfig:
    return a_config()


@pytest.mark.parametrize("value", ["-1", "true", "nan", "mypkg", "null"])
def test_trusted_must_be_a_list(value: str) -> None:
    for name, check in (("train", check_config), ("evaluate", check_evaluation)):
        with pytest.raises(UserError, match=r"trusted=.*must be a list of packages"):
            check(compose([f"trusted={value}"], name=name))


@pytest.fixture
def mypkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "mypkg_of_the_checks"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "nets.py").write_text(
        "import functools, os\nfrom pathlib import Path\n"
        "class Net:\n    def __init__(self, depth: int = 1): self.depth = depth\n"
        "class Mine(Path): pass\n"
        "def make(depth: int = 1): return Net(depth)\n"
        "shell = functools.partial(os.system, 'true')\nalso = os.system\nNUMBER = 3\n"
    )
    (tmp_path / name / "broken.py").write_text("raise RuntimeError('by its author')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


@pytest.mark.parametrize("target", ["nets.Net", "nets.make", "nets.Mine"])
def test_classes_defined_in_a_trusted_package_are_allowed(target: str, mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.{target}"})
    with pytest.raises(UserError, match="trusted="):
        check_targets(cfg)
    assert f"{mypkg}.nets" not in sys.modules
    check_targets(cfg, [mypkg])
    check_targets(cfg, [f"{mypkg}.nets"])


@pytest.mark.parametrize(
    "target",
    ["nets.os.system", "nets.also", "nets.shell", "nets.Path", "nets.Mine.write_text", "nets.NUMBER", "nets", "none"],
)
def test_classes_that_a_trusted_package_imports_are_not_allowed(target: str, mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.{target}"})
    with pytest.raises(UserError, match="may not make this"):
        check_targets(cfg, [mypkg])


def test_trusted_in_a_configuration_file_has_no_effect(mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.nets.Net"})
    with pytest.raises(UserError, match="may not make this"):
        check_targets(put(cfg, "trusted", [mypkg]))


def test_a_package_of_a_similar_name_is_not_trusted(mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.nets.Net"})
    importlib.import_module(f"{mypkg}.nets")
    with pytest.raises(UserError, match="may not make this"):
        check_targets(cfg, [f"{mypkg}.net"])


def test_an_error_in_a_trusted_module_is_a_message(mypkg: str, cfg: DictConfig) -> None:
    put(cfg, "model.encoder", {"_target_": f"{mypkg}.broken.Net"})
    with pytest.raises(UserError, match=r"broken cannot be imported: RuntimeError: by its author"):
        check_targets(cfg, [mypkg])


@pytest.mark.parametrize(
    "name", ["os", "builtins", "torch", "torch.hub", "simclr_lightning", "hydra", "no_such_package", "a-b", ""]
)
def test_only_the_users_package_can_be_trusted(name: str, cfg: DictConfig) -> None:
    with pytest.raises(UserError, match="trusted="):
        check_targets(cfg, [name])


def test_an_argument_of_the_users_class_may_be_added_as_a_key(mypkg: str) -> None:
    overrides = [f"model.encoder._target_={mypkg}.nets.Net", f"trusted=[{mypkg}]"]
    assert compose([*overrides, "+model.encoder.depth.x=1"]).model.encoder.depth.x == 1
    with pytest.raises(UserError, match=r"model\.encoder\.height: unknown key"):
        compose([*overrides, "+model.encoder.height=1"])
