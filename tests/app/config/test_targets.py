"""What a configuration may instantiate: hostile targets are refused everywhere, and nothing runs."""

from __future__ import annotations

import contextlib
import copy
import pydoc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from changed_configs import a_config, put
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from simclr_lightning.app.config.composition import compose
from simclr_lightning.app.config.instantiate import make
from simclr_lightning.app.config.plain import from_plain
from simclr_lightning.app.config.targets import ALLOWED, HYDRA_ALLOWED, resolve
from simclr_lightning.app.config.validate import check_targets
from simclr_lightning.app.errors import LINES, UserError


@pytest.fixture
def cfg() -> DictConfig:
    return a_config()


def call(target: Any, *args: Any, **keywords: Any) -> dict[str, Any]:
    return {"_target_": target, **({"_args_": list(args)} if args else {}), **keywords}


def hostile(canary: Path) -> dict[str, dict[str, Any]]:
    """Nodes that write the canary file, or try to, when they are made."""
    touch, shell, code = ["touch", str(canary)], f"touch '{canary}'", f"open({str(canary)!r}, 'w')"
    name, folder, source = canary.name, str(canary.parent), str(canary.parent / "source")
    url, path = f"file://{source}", call("pathlib.Path", str(canary))
    weights = {"url": url, "model_dir": folder, "file_name": name}
    aliased = call("simclr_lightning.data.datamodule.Path", str(canary))
    return {
        "os.system": call("os.system", command=shell),
        "posix.system": call("posix.system", command=shell),
        "os.popen": call("os.popen", cmd=shell),
        "os.mkdir": call("os.mkdir", path=str(canary)),
        "os.rename": call("os.rename", src=source, dst=str(canary)),
        "eval": call("builtins.eval", code),
        "exec": call("builtins.exec", code),
        "open": call("builtins.open", file=str(canary), mode="w"),
        "io.open": call("io.open", file=str(canary), mode="w"),
        "Popen": call("subprocess.Popen", args=touch),
        "run": call("subprocess.run", args=touch),
        "check_output": call("subprocess.check_output", touch),
        "write_text": call("pathlib.Path.write_text", path, "x"),
        "urlretrieve": call("urllib.request.urlretrieve", url=url, filename=str(canary)),
        "copy": call("shutil.copy", src=source, dst=str(canary)),
        "torch.save": call("torch.save", obj=1, f=str(canary)),
        "download_url": call("torchvision.datasets.utils.download_url", url=url, root=folder, filename=name),
        "load_from_url": call("torch.hub.load_state_dict_from_url", **weights),
        "alias of os": call("simclr_lightning.checkpoint.os.system", command=shell),
        "alias of Path": call("simclr_lightning.data.datamodule.Path.touch", aliased),
        "own writer": call("simclr_lightning.run_folder.write_summary", call("pathlib.Path", folder), {}),
        "partial": call("functools.partial", call("os.system", command=shell)),
        "hydra's helper": call("hydra.utils.call", call("torch.save", obj=1, f=str(canary))),
        "hydra's method": call("hydra.utils.get_method", path="evil_on_import.thing"),
        "import": call("evil_on_import.thing"),
        "import_module": call("importlib.import_module", name="evil_on_import"),
        # harmless to instantiate, but refused too
        "globals": call("simclr_lightning.projector.nn.Module.__init__.__globals__", x=1),
        "partial flag": call("os.system", _partial_=True, command=shell),
        "submodule": call("simclr_lightning.nothing.evil_on_import"),
        "not a name": call("torch.optim.SGD()"),
        "number": call(3),
        "null": call(None),
        "class method": call("torch.optim.SGD.load_state_dict", state_dict={}),
        "base class": call("torch.optim.Optimizer", params=[], defaults={}),
        "torch.load": call("torch.load", f=source),
    }


def let_loose(node: Any) -> Any:
    """Instantiate a node, as a program without checks would."""
    if not isinstance(node, dict) or "_target_" not in node:
        return node
    made = {key: let_loose(value) for key, value in node.items() if not key.startswith("_")}
    target = pydoc.locate(node["_target_"])
    assert callable(target)
    return target(*map(let_loose, node.get("_args_", [])), **made)


IDLE = {
    *("globals", "partial flag", "submodule", "not a name", "number", "null", "class method", "base class"),
    "torch.load",
}
PLACES = (
    "optimizer",
    "model.encoder",
    "data.dataset.transform",
    "trainer.profiler",
    "hydra.callbacks.mine",
    "hydra.launcher",
    "hydra.sweeper.sampler",
    "hydra.job.config.override_dirname.mine",
    "anything",
)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    canary = tmp_path / "canary"
    (tmp_path / "source").write_text("x")
    (tmp_path / "evil_on_import.py").write_text(f"open({str(canary)!r}, 'w').close()\ndef thing(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    yield canary
    sys.modules.pop("evil_on_import", None)


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_hostile_targets_are_refused_everywhere_and_nothing_runs(name: str, canary: Path) -> None:
    node = hostile(canary)[name]
    before = sorted(canary.parent.iterdir())
    wraps: list[Any] = [[node], [{"a": [1, node]}], {"deep": {"deeper": node}}]
    for number, place in enumerate(PLACES):
        for wrapped in (node, wraps[number % 3]):
            cfg = put(a_config(), place, wrapped)
            with pytest.raises(UserError) as caught:
                check_targets(cfg)
            assert place.partition(".")[0] in str(caught.value)
            assert len(str(caught.value).splitlines()) <= LINES
    assert sorted(canary.parent.iterdir()) == before
    assert "evil_on_import" not in sys.modules


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(hostile(Path("x")).keys() - IDLE))
def test_these_targets_are_really_hostile(name: str, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # This proves that the test above can fail: instantiating these nodes does harm.
    made: Any = None
    with contextlib.suppress(Exception):
        made = let_loose(hostile(canary)[name])
    for end in ("wait", "close"):
        getattr(made, end, int)()
    assert canary.exists() or (canary.parent / "summary.json").exists()


def test_nodes_that_hydra_instantiates_contain_no_escaped_interpolation(canary: Path) -> None:
    text = f"\\${{oc.create:'{{_target_: os.mkdir, path: {canary}}}'}}"
    for place, value in (("launcher.jobs", text), ("sweeper.mine", [{"deep": text}]), ("callbacks.mine", {"a": text})):
        with pytest.raises(UserError, match=rf"hydra\.{place.partition('.')[0]}.*Hydra would follow"):
            check_targets(put(a_config(), f"hydra.{place}", value))
    assert not canary.exists()
    instantiate(OmegaConf.create({"_target_": "builtins.dict", "x": text}))
    assert canary.exists()  # this proves that Hydra would follow it


def test_an_interpolation_does_not_hide_a_target(canary: Path, cfg: DictConfig) -> None:
    text = f"${{oc.create:'{{_target_: os.system, command: touch {canary}}}'}}"
    OmegaConf.register_new_resolver("made", lambda: OmegaConf.create({"_target_": "os.system"}), replace=True)
    try:
        for place in ("trainer.profiler", "hydra.callbacks.mine"):
            for value in (text, "${made:}", {"_target_": "${oc.decode:os.system}"}):
                with pytest.raises(UserError):
                    check_targets(put(copy.deepcopy(cfg), place, value))
    finally:
        OmegaConf.clear_resolver("made")
    assert not canary.exists()


def test_an_interpolation_in_a_file_name_is_never_followed(canary: Path) -> None:
    text = f"${{oc.create:'{{_target_: pathlib.Path.touch, self: {{_target_: pathlib.Path, _args_: [{canary}]}}}}'}}"
    node = {"_target_": "simclr_lightning.Projector", "_partial_": True, "out_dim": text, "deep": {"er": [text]}}
    cfg = from_plain({"model": node})
    check_targets(cfg)
    assert make(cfg.model).keywords == {"out_dim": text, "deep": {"er": [text]}}
    assert not canary.exists()


def test_malformed_nodes_of_hydra_are_refused(cfg: DictConfig) -> None:
    with pytest.raises(UserError):
        check_targets(put(cfg, "hydra.callbacks.mine", "${nothing_of_this_name}"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("handlers.mine", {"()": "subprocess.Popen", "args": ["true"]}),
        ("handlers.mine", {"class": "evil_on_import.Handler"}),
        ("formatters.mine", {"()": "os.system", "command": "true"}),
        ("filters.mine", {"()": "ext://os.system", "command": "true"}),
        ("handlers.mine", {"class": "logging.StreamHandler", "stream": "ext://evil_on_import.x"}),
        ("handlers", {"a": {"class": "logging.StreamHandler", "deep": ["ext://os.system"]}}),
    ],
)
@pytest.mark.parametrize("node", ["hydra.job_logging", "hydra.hydra_logging"])
def test_logging_may_instantiate_only_handlers_and_formatters(
    node: str, key: str, value: Any, canary: Path, cfg: DictConfig
) -> None:
    with pytest.raises(UserError, match=node):
        check_targets(put(cfg, f"{node}.{key}", value))
    assert not canary.exists()


def test_hydras_own_options_pass() -> None:
    check_targets(compose(["hydra/job_logging=default", "hydra/hydra_logging=default"]))
    check_targets(compose(["hydra/launcher=basic"]))
    callback = {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}
    check_targets(put(compose([]), "hydra.callbacks.log", callback))


def test_a_target_of_one_tree_is_not_allowed_in_the_other(cfg: DictConfig) -> None:
    with pytest.raises(UserError):
        check_targets(put(copy.deepcopy(cfg), "hydra.callbacks.x", {"_target_": "lightning.Trainer"}))
    with pytest.raises(UserError):
        check_targets(put(cfg, "optimizer", {"_target_": HYDRA_ALLOWED[0]}))


def test_every_name_of_the_list_exists() -> None:
    assert [name for name in ALLOWED if resolve(name) is None] == []
    assert len({id(resolve(name)) for name in ALLOWED}) == len(ALLOWED)


def test_another_name_of_an_allowed_object_is_accepted(cfg: DictConfig) -> None:
    put(cfg, "model.projector._target_", "simclr_lightning.Projector")
    put(cfg, "optimizer._target_", "torch.optim.Adam")
    put(cfg, "trainer._target_", "lightning.pytorch.Trainer")
    check_targets(cfg)


def test_the_nearest_allowed_name_is_suggested(cfg: DictConfig) -> None:
    with pytest.raises(UserError, match=r"did you mean torch\.optim\.AdamW"):
        check_targets(put(cfg, "optimizer._target_", "torch.optim.AdamWW"))


def test_arguments_without_names_are_refused(cfg: DictConfig) -> None:
    with pytest.raises(UserError, match=r"optimizer\._args_"):
        check_targets(put(copy.deepcopy(cfg), "optimizer._args_", [1]))
    with pytest.raises(UserError, match=r"optimizer\._args_"):
        check_targets(put(cfg, "optimizer._args_", "torch.optim.SGD"))
