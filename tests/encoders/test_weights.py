"""Load every kind of file with weights; refuse those that do not fit, are damaged or hostile."""

from __future__ import annotations

import functools
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from made_encoders import features_of, torchvision_resnet
from safetensors.torch import save_file
from torch import Tensor

from simclr_lightning.encoders import Encoder, load_weights, resnet, timm_encoder


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def _small(**options: Any) -> Encoder:
    torch.manual_seed(7)
    return resnet(10, 0.25, "cifar", **options)


def _fill(encoder: Encoder, seed: int = 1) -> dict[str, Tensor]:
    """Return a state dict with the encoder's shapes and other values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 5
        for key, value in encoder.body.state_dict().items()
    }


def _assert_holds(encoder: Encoder, state: dict[str, Tensor]) -> None:
    own = encoder.body.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {**s, "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"state_dict": {"encoder." + k: v for k, v in s.items()} | {"projector.w": torch.zeros(2)}},
        lambda s: {"state_dict": {"encoder._orig_mod." + k: v for k, v in s.items()}},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
        lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    ],
    ids=["bare", "fc", "state_dict", "model", "lightning", "compiled", "ddp", "old", "half"],
)
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt"])
def test_pickled_state_dicts_load(wrap: Callable[[dict[str, Tensor]], Any], name: str, tmp_path: Path) -> None:
    encoder = _small()
    wanted = {k: v.half().float() if v.is_floating_point() else v for k, v in _fill(encoder).items()}
    wrapped = wrap(wanted)
    torch.save(wrapped, tmp_path / name)
    before = encoder.body.state_dict()["bn1.num_batches_tracked"].clone()
    load_weights(encoder, tmp_path / name)
    is_old = isinstance(wrapped, dict) and "conv1.weight" in wrapped and "bn1.num_batches_tracked" not in wrapped
    if is_old:
        assert torch.equal(encoder.body.state_dict()["bn1.num_batches_tracked"], before)
    _assert_holds(encoder, {k: v for k, v in wanted.items() if not (is_old and "num_batches" in k)})


def test_torchvisions_own_file_loads_and_gives_its_features(tmp_path: Path, images: Tensor) -> None:
    theirs = torchvision_resnet(18)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    wanted = features_of(theirs, images)
    for name in ("resnet18.pth", "resnet18.safetensors"):
        encoder = resnet(18)
        load_weights(encoder, os.fspath(tmp_path / name))
        assert torch.equal(encoder.eval()(images), wanted)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
    ],
)
def test_timms_own_file_loads_without_its_classifier(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs = timm.create_model(name, **options)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    encoder = timm_encoder(name, **options)
    load_weights(encoder, tmp_path / "theirs.pth")
    own = theirs.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in encoder.body.state_dict().items())
    # a Lightning checkpoint of a run with this encoder
    state = {"encoder." + key: value + 1 for key, value in encoder.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "run.ckpt")
    load_weights(encoder, tmp_path / "run.ckpt")
    assert all(torch.equal(value, own[key] + 1) for key, value in encoder.body.state_dict().items())


def test_a_run_that_has_not_finished_gives_its_last_checkpoint(tmp_path: Path) -> None:
    encoder = _small()
    state = _fill(encoder)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {"encoder." + k: v for k, v in state.items()}}, tmp_path / "checkpoints" / "last.ckpt")
    load_weights(encoder, tmp_path)
    _assert_holds(encoder, state)


def test_imagenet_is_torchvisions_enum_with_its_normalization(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    theirs = torchvision_resnet(18)
    asked: list[Any] = []

    def fetch(url: str, **options: Any) -> dict[str, Any]:
        asked.append((url, options))
        return theirs.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    encoder = resnet(18)
    load_weights(encoder, "imagenet")
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    normalized = torchvision.transforms.functional.normalize(images, preset.mean, preset.std)
    assert torch.equal(encoder.eval()(images), features_of(theirs, normalized))
    assert encoder.spec["mean"] == list(preset.mean)
    url, options = asked[0]
    assert url == torchvision.models.ResNet18_Weights.DEFAULT.url
    assert options["weights_only"] is True
    assert options["check_hash"] is True

    def unreachable(url: str, **options: Any) -> dict[str, Any]:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(ValueError, match=r"model\.weights=imagenet: cannot download https.*: no route"):
        load_weights(encoder, "imagenet")


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(resnet, 10),
        functools.partial(resnet, 18, 0.5),
        functools.partial(resnet, 18, 1, "cifar"),
        functools.partial(timm_encoder, "resnet10t"),
    ],
)
def test_imagenet_is_refused_where_torchvision_has_none(make: Callable[[], Encoder]) -> None:
    with pytest.raises(ValueError, match=r"model\.weights=imagenet needs ResNet 18"):
        load_weights(make(), "imagenet")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "conv1.weight"}, r"missing: conv1\.weight$"),
        (lambda s: {**s, "gate.weight": torch.zeros(1)}, r"unexpected: gate\.weight$"),
        (
            lambda s: {**s, "conv1.weight": torch.zeros(16, 3, 7, 7)},
            r"of another shape: conv1\.weight is \(16, 3, 7, 7\) and should be \(16, 3, 3, 3\)$",
        ),
        (
            lambda s: {"a": torch.zeros(1)},
            r"missing: conv1\.weight, bn1\.weight and \d+ more; unexpected: a$",
        ),
    ],
)
def test_a_misfit_is_one_line_and_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], match: str, tmp_path: Path
) -> None:
    encoder = _small()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.save(change(_fill(encoder)), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"^model\.weights=.*w\.pt does not fit this encoder; " + match) as caught:
        load_weights(encoder, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    _assert_holds(encoder, before)


def test_the_other_stem_and_another_architecture_are_misfits(tmp_path: Path) -> None:
    torch.save(resnet(18, 0.25, "imagenet").state_dict(), tmp_path / "imagenet.pt")
    with pytest.raises(ValueError, match=r"conv1\.weight is \(16, 3, 7, 7\)"):
        load_weights(resnet(18, 0.25, "cifar"), tmp_path / "imagenet.pt")
    torch.save(resnet(34, 0.25, "cifar").state_dict(), tmp_path / "deeper.pt")
    with pytest.raises(ValueError, match=r"unexpected: layer1\.2"):
        load_weights(resnet(18, 0.25, "cifar"), tmp_path / "deeper.pt")


class Hostile:
    """An object that runs a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _attacks(mark: Path) -> dict[str, Any]:
    command = f"touch {mark}"
    return {
        "system": Hostile(os.system, command),
        "exec": Hostile(exec, f"open({os.fspath(mark)!r}, 'w').close()"),
        "eval": Hostile(eval, f"__import__('os').system({command!r})"),
        "touch": Hostile(Path.touch, mark),
        "nested": {"state_dict": {"conv1.weight": torch.zeros(1), "x": Hostile(os.system, command)}},
        "partial": Hostile(functools.partial(os.system, command)),
    }


@pytest.mark.parametrize("attack", ["system", "exec", "eval", "touch", "nested", "partial"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.safetensors", "w.bin"])
def test_hostile_pickles_are_refused_and_nothing_runs(attack: str, form: str, name: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / name
    harm = _attacks(mark)[attack]
    if form == "pickle":
        path.write_bytes(pickle.dumps(harm))
    else:
        torch.save(harm, path, _use_new_zipfile_serialization=form == "zip")
    encoder = _small()
    with pytest.raises(ValueError, match=os.fspath(path)) as caught:
        load_weights(encoder, path)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not mark.exists()
    if name == "w.bin":  # show that the attack works where the file is not refused
        if form == "pickle":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert mark.exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    encoder = _small()
    good = tmp_path / "good.pt"
    torch.save(_fill(encoder), good)
    files = {
        "empty.pt": b"",
        "short.pt": good.read_bytes()[:-500],
        "shorter.pt": good.read_bytes()[:100],
        "text.pt": b"hello, I am not a checkpoint",
        "text.safetensors": b"hello, I am not safetensors",
        "empty.safetensors": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme", "nothing")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/data.pkl", b"")
    for name in [*files, "zip.pt", "script.pt"]:
        with pytest.raises(ValueError, match=name) as caught:
            load_weights(encoder, tmp_path / name)
        assert "\n" not in str(caught.value)
    hollow = [{"conv1.weight": torch.eye(3).to_sparse()}, {"conv1.weight": torch.empty(3, device="meta")}]
    for content in ([1, 2], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3), *hollow):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="holds no state dict"):
            load_weights(encoder, tmp_path / "other.pt")


def test_missing_files_and_web_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.weights=.*nothing\.pt: .* does not exist"):
        load_weights(_small(), tmp_path / "nothing.pt")
    with pytest.raises(FileNotFoundError, match=r"model\.weights=.* holds no encoder\.safetensors"):
        load_weights(_small(), tmp_path)
    with pytest.raises(ValueError, match="is a web address; download"):
        load_weights(_small(), "https://example.org/weights.pt")
