"""Composition with conf/: defaults, interpolations, experiments, the folder of a sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from simclr_lightning.app.config import composition
from simclr_lightning.app.config.composition import compose, conf_folder, set_sweep_overrides
from simclr_lightning.app.errors import UserError

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture(scope="module")
def default() -> DictConfig:
    return compose([])


def test_interpolations_work_in_hydras_folders_and_nowhere_else() -> None:
    cfg = compose(["hydra.run.dir=runs, mine/${seed}", "data.path=cost ${5}, ${now:%Y}", "seed=7"])
    assert cfg.hydra.run.dir == "runs, mine/7"
    assert cfg.data.path == "cost ${5}, ${now:%Y}"
    assert compose(["hydra.run.dir=a${b"]).hydra.run.dir == "a${b"
    assert compose([r"hydra.sweep.dir=a\${seed}"]).hydra.sweep.dir == "a${seed}"


def test_the_repositorys_folder_is_preferred() -> None:
    assert conf_folder() == CONF.resolve()


def test_a_package_without_its_repository_uses_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "simclr_lightning"
    (package / "app/config").mkdir(parents=True)
    monkeypatch.setattr(composition, "__file__", str(package / "app/config/composition.py"))
    with pytest.raises(UserError, match="configuration folder is missing"):
        conf_folder()
    (package / "conf").mkdir()
    (package / "conf" / "train.yaml").write_text("")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").write_text("")  # of another project, since the package is not in a src/ folder
    assert conf_folder() == package / "conf"


def test_the_defaults(default: DictConfig) -> None:
    assert default.loss.temperature == 0.5  # experiment=photos
    assert compose(["experiment=null"]).loss.temperature == 0.2
    assert default.model.encoder.stem == "cifar"
    assert str(default.hydra.run.dir).startswith("outputs/")


def test_the_stem_follows_the_side() -> None:
    assert compose(["views=simclr"]).model.encoder.stem == "imagenet"
    assert compose(["views.size=33"]).model.encoder.stem == "imagenet"
    assert compose(["views.size=32"]).model.encoder.stem == "cifar"
    assert compose(["views=simclr", "model.encoder.stem=cifar"]).model.encoder.stem == "cifar"


def test_every_experiment_accepts_other_data() -> None:
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        cfg = compose([f"experiment={path.stem}", "data=array", "data.path=x.npz"])
        assert cfg.data.dataset._target_ == "simclr_lightning.data.array", path


def test_the_last_of_two_values_counts() -> None:
    assert compose(["seed=1", "seed=2"]).seed == 2


def test_trusted_can_be_set_only_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrusted: [mypkg]\n")
    where = f"hydra.searchpath=['file://{tmp_path}']"
    with pytest.raises(UserError, match="only on the command line"):
        compose([where, "experiment=mine"])
    assert list(compose([where, "experiment=mine", "trusted=[other]"]).trusted) == ["other"]


def test_an_experiment_may_set_any_key(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\nmicro_batch_size: 64\n")
    cfg = compose([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine", "micro_batch_size=32"])
    assert (cfg.seed, cfg.micro_batch_size) == (5, 32)


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nloss: [1,\n")
    with pytest.raises(UserError):
        compose([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])


def test_a_sweeps_folder_is_named_after_its_overrides() -> None:
    def folder(*overrides: str) -> str:
        set_sweep_overrides(overrides)
        return str(compose([]).hydra.sweep.dir)

    try:
        first = folder("seed=1,2", "data.batch_size=64,128")
        assert first == folder("data.batch_size=64,128", "seed=1,2")
        assert first != folder("seed=1,2", "data.batch_size=64,256")
        # sha256sum of the sorted overrides, joined by zero bytes
        printed = "printf 'data.batch_size=64,128\\0seed=1,2' | sha256sum"
        digest = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True).stdout
        assert first == f"outputs/sweeps/{digest[:8]}"
    finally:
        set_sweep_overrides([])


def test_composing_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from simclr_lightning.app.config.composition import compose\n"
        "compose(['seed=1'])\n"
        "assert not {'torch', 'lightning', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
