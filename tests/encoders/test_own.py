"""An encoder of the user is made from a recipe only if its package is trusted; hostile recipes run nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from simclr_lightning.encoders import UntrustedError, build, load_weights
from simclr_lightning.encoders.weights import digest
from simclr_lightning.export import export_as, export_encoder, load_encoder

PACKAGE = """
import os
from pathlib import Path

from torch import nn

Path(__file__).with_name("imported").touch()


class Net(nn.Module):
    def __init__(self, width=4, stride=1, inner=None):
        super().__init__()
        self.layer, self.inner = nn.Conv2d(3, width, 3, stride), inner

    def forward(self, x):
        return self.layer(x)


def annotated(width: int) -> nn.Module:
    return Net(width)


def bare(width=4):
    return touch("called") and Net(width)


def touch(name):
    Path(__file__).with_name(name).touch()
    return True


class Toucher:
    def __init__(self, name="called"):
        touch(name)
"""
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package ownnets, which writes a file when it is imported or one of its functions is called."""
    folder = tmp_path / "path" / "ownnets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(folder.parent)
    yield folder
    sys.modules.pop("ownnets", None)


def ran(package: Path) -> list[str]:
    return sorted(path.name for path in package.iterdir() if path.name in ("imported", "called"))


def forged(path: Path, spec: dict[str, Any]) -> None:
    """Replace the spec in the header of an export; its checksum is valid."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), "spec": json.dumps(spec)}
    state = load_file(path)
    metadata["sha256"] = digest(state, metadata["spec"], metadata["size"])
    save_file(state, path, metadata=metadata)


@pytest.fixture
def exported(package: Path, tmp_path: Path) -> Path:
    """The export of a ownnets.Net; the package is not imported."""
    import ownnets

    path = export_encoder(ownnets.Net(width=5), tmp_path / "out", size=8, arguments={"width": 5})
    del sys.modules["ownnets"]
    (package / "imported").unlink()
    return path


def test_nothing_is_imported_without_trust(package: Path, exported: Path) -> None:
    with pytest.raises(UntrustedError, match=r'ownnets\.Net, code of the package ownnets.*trusted=\["ownnets"\]'):
        load_encoder(exported)
    for trusted in (["own"], ["ownnets.layers"], ["other"], [""]):
        with pytest.raises(ValueError, match="not imported"):
            load_encoder(exported, trusted=trusted)
    assert ran(package) == []
    assert load_encoder(exported, trusted=["ownnets"])(X).shape == (2, 5)
    assert ran(package) == ["imported"]


@pytest.mark.parametrize(
    "spec",
    [
        {"factory": "os.system", "arguments": {"command": "touch {0}/called"}},
        {"factory": "posix.system", "arguments": {"command": "touch {0}/called"}},
        {"factory": "builtins.exec", "arguments": {}},
        {"factory": "ownnets.os.system", "arguments": {"command": "touch {0}/called"}},
        {"factory": "ownnets.Path.touch", "arguments": {"self": "{0}/called"}},
        {"factory": "ownnets.touch", "arguments": {"name": "called"}},
        {"factory": "ownnets.bare", "arguments": {}},
        {"factory": "ownnets.Toucher", "arguments": {}},
        {"factory": "ownnets.nn.Linear", "arguments": {"in_features": 3, "out_features": 3}},
        {"factory": "ownnets.Net", "arguments": {"inner": {"_target_": "os.system", "command": "touch {0}/called"}}},
        {"factory": "ownnets.Net", "arguments": {"inner": [{"_target_": "ownnets.touch", "name": "called"}]}},
        {"factory": "ownnets.Net", "arguments": {"width": "x"}},
        {"factory": "ownnets.Net", "arguments": ["touch"]},
        {"factory": "ownnets.nothing", "arguments": {}},
        {"factory": "ownnetsevil.Net", "arguments": {}},
        {"factory": "ownnets.__init__.os.system", "arguments": {}},
        {"factory": "torch.hub.load", "arguments": {}},
        {"factory": ["ownnets.Net"], "arguments": {}},
        {"factory": None, "arguments": {}},
        {"factory": "ownnets.Net()", "arguments": {}},
    ],
    ids=lambda spec: f"{spec['factory']} {str(spec['arguments'])[:30]}",
)
def test_a_hostile_recipe_runs_nothing(spec: dict[str, Any], package: Path, exported: Path) -> None:
    spec = json.loads(json.dumps(spec).replace("{0}", str(package)))
    forged(exported, spec)
    with pytest.raises(ValueError, match=r"encoder\.safetensors") as caught:
        load_encoder(exported, trusted=["ownnets", "os"])
    assert len(str(caught.value)) < 400
    assert "called" not in ran(package)


def test_functions_are_called_if_they_are_annotated_or_named(package: Path) -> None:
    recipe = {"factory": "ownnets.annotated", "arguments": {"width": 3}}
    assert build(recipe, trusted=["ownnets"]).feature_dim == 3
    recipe = {"factory": "ownnets.bare", "arguments": {}}
    with pytest.raises(ValueError, match="annotated to return one"):
        build(recipe, trusted=["ownnets"])
    assert build(recipe, trusted=["ownnets", "ownnets.bare"]).feature_dim == 4
    nested = {"factory": "ownnets.Net", "arguments": {"inner": {"_target_": "ownnets.Net", "width": 2}}}
    assert build(nested, trusted=["ownnets"]).body.inner.layer.out_channels == 2  # type: ignore[union-attr]
    older = {"factory": "ownnets.Net", "name": "Net", "width": 6}  # as users wrote it in an attribute `spec`
    assert build(older, trusted=["ownnets"]).feature_dim == 6


def test_arguments_that_make_another_encoder_are_refused(package: Path, tmp_path: Path) -> None:
    import ownnets

    net = ownnets.Net(stride=2)  # its weights also fit a stride of 1
    with pytest.raises(ValueError, match=r"Net\(\*\*arguments\) is not this encoder"):
        export_encoder(net, tmp_path, size=8, arguments={"stride": 1})
    with pytest.raises(ValueError, match="plain values"):
        export_encoder(net, tmp_path, size=8, arguments={"stride": torch.ones(1)})
    export_encoder(net, tmp_path, size=8)  # without arguments: only the weights
    with pytest.raises(ValueError, match="give encoder=NET"):
        load_encoder(tmp_path, trusted=["ownnets"])
    loaded = load_encoder(tmp_path, encoder=ownnets.Net(stride=2))
    assert torch.equal(loaded(X), net(X).mean((2, 3)))
    with pytest.raises(ValueError, match=r"do not match its header, first at layer\.bias"):
        load_encoder(tmp_path, encoder=ownnets.Net(width=3))


def test_a_class_of_main_is_loaded_into_a_module_that_is_given(tmp_path: Path) -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1))  # type: ignore[no-any-return]

    for name in ("<locals>", "__main__"):
        if name == "__main__":
            Local.__module__, Local.__qualname__ = "__main__", "Local"
        net, folder = Local(), tmp_path / name.strip("<>_")
        export_encoder(net, folder, size=8)
        assert 'load_encoder("this/folder", encoder=NET)  # NET is a new Local' in (folder / "card.md").read_text()
        with pytest.raises(ValueError, match="no name that can be imported; give encoder=NET"):
            load_encoder(folder, trusted=["__main__"])
        assert torch.equal(load_encoder(folder, encoder=Local())(X), net(X))
    other = load_encoder(folder, encoder=Local())
    nn.init.zeros_(other.body.layer.weight)  # type: ignore[arg-type, union-attr]
    load_weights(other, folder)
    assert torch.equal(other(X), net(X))


def test_an_own_encoder_is_exported_for_other_programs(package: Path, exported: Path, tmp_path: Path) -> None:
    import onnxruntime

    encoder = load_encoder(exported, trusted=["ownnets"])
    with torch.inference_mode():
        h = encoder(X)
    path = export_as("onnx", encoder, tmp_path / "net.onnx", force=False)
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["h"], {"images": X.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), h, rtol=0, atol=1e-5)
    path = export_as("hub", encoder, tmp_path / "hub", force=False)
    assert torch.equal(load_encoder(path, trusted=["ownnets"])(X), h)
    config = json.loads((tmp_path / "hub/config.json").read_text())["simclr_lightning"]
    assert (config["factory"], config["arguments"]) == ("ownnets.Net", {"width": 5})
    with pytest.raises(ValueError, match=r"torchvision has no Net.*export it as safetensors, onnx or hub"):
        export_as("torchvision", encoder, tmp_path / "x", force=False)
