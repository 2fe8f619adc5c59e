"""Compare encoders with torchvision, timm and the paper's tables, and load every kind of file with weights."""

import functools
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from simclr_lightning.encoders import Encoder, build, load_weights, resnet, timm_encoder

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _torchvision(depth: int, seed: int = 0, **options: Any) -> nn.Module:
    """Return torchvision's ResNet with random weights, gammas, betas and statistics."""
    torch.manual_seed(seed)
    model: nn.Module = getattr(torchvision.models, f"resnet{depth}")(**options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                assert tensor is not None
                tensor.normal_(0, 0.1)
    return model.eval()


def _features(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Return the input of the classifier in torchvision's network."""
    model.fc = nn.Identity()
    with torch.inference_mode():
        return model(x_NCHW)  # type: ignore[no-any-return]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


# ---- architecture


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_state_dict_is_torchvisions_without_fc(depth: int) -> None:
    with torch.device("meta"):
        ours, theirs = (
            resnet(depth).state_dict(),
            getattr(torchvision.models, f"resnet{depth}")().state_dict(),
        )
    wanted = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == wanted
    assert list(ours) == list(wanted)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_loads_our_weights_and_returns_the_same_features(depth: int, images: Tensor) -> None:
    encoder = resnet(depth)
    encoder.load_state_dict({k: v for k, v in _torchvision(depth).state_dict().items() if k[:3] != "fc."})
    encoder.eval()
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(encoder.state_dict(), strict=True)
    with torch.inference_mode():
        h_NF = encoder(images)
        assert torch.equal(h_NF, theirs.eval()(images))
    assert h_NF.shape == (2, encoder.feature_dim)
    assert h_NF.std() > 0.01


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_bottlenecks_stride_on_the_3x3_convolution(depth: int) -> None:
    with torch.device("meta"):
        encoder = resnet(depth)
    for stage in (encoder.layer2, encoder.layer3, encoder.layer4):
        first: Any = stage[0]
        assert [first.conv1.stride, first.conv2.stride, first.conv3.stride] == [(1, 1), (2, 2), (1, 1)]
        assert first.conv2.kernel_size == (3, 3)


# the paper's figure 1 and table 6, and the second paper's table 1, in millions without the classifier
@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(50, 1, 24), (50, 2, 94), (50, 4, 375), (101, 1, 43), (101, 2, 170), (152, 1, 58), (152, 2, 233)],
)
def test_parameter_counts_are_the_papers(depth: int, width: int, millions: int) -> None:
    with torch.device("meta"):
        encoder = resnet(depth, width)
    assert abs(_count(encoder) / 1e6 - millions) <= 0.75
    assert encoder.feature_dim == 2048 * width


@pytest.mark.parametrize("depth", [18, 50])
def test_width_multiplies_the_channels_of_every_layer(depth: int) -> None:
    def channels(width: float) -> list[int]:
        with torch.device("meta"):
            return [m.out_channels for m in resnet(depth, width).modules() if isinstance(m, nn.Conv2d)]

    for width in (0.25, 0.5, 2, 4):
        assert channels(width) == [width * c for c in channels(1)]


@pytest.mark.parametrize(("depth", "width", "dim"), [(10, 1, 512), (18, 0.25, 128), (34, 2, 1024), (50, 0.5, 1024)])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_feature_dim_is_the_width_of_h(depth: int, width: float, dim: int, stem: Any) -> None:
    encoder = resnet(depth, width, stem)
    assert encoder.feature_dim == dim
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, dim)


def _sides(encoder: nn.Module, side: int) -> list[int]:
    """Return the side of the output of each part of the network, for one image of this side."""
    sides: list[int] = []
    parts = [getattr(encoder, name) for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")]
    hooks = [part.register_forward_hook(lambda m, i, out: sides.append(out.shape[-1])) for part in parts]
    with torch.inference_mode():
        encoder.eval()(torch.rand(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return sides


def test_the_cifar_stem_keeps_small_images_whole() -> None:
    encoder = resnet(18, 0.25, "cifar")
    assert (encoder.conv1.kernel_size, encoder.conv1.stride, encoder.conv1.padding) == (
        (3, 3),
        (1, 1),
        (1, 1),
    )
    assert encoder.conv1.bias is None
    assert not any(isinstance(m, nn.MaxPool2d) for m in encoder.modules())
    assert _sides(encoder, 32) == [32, 32, 32, 16, 8, 4]
    # The ImageNet stem would reduce 32 pixels to one position.
    assert _sides(resnet(18, 0.25, "imagenet"), 32) == [16, 8, 8, 4, 2, 1]
    assert _sides(resnet(18, 0.25, "imagenet"), 224) == [112, 56, 56, 28, 14, 7]


@pytest.mark.parametrize(("depth", "blocks"), [(10, 4), (18, 8), (50, 16)])
def test_every_block_starts_as_its_shortcut(depth: int, blocks: int) -> None:
    def last_gammas(encoder: Encoder) -> list[Tensor]:
        name = "bn3.weight" if depth >= 50 else "bn2.weight"
        return [p for key, p in encoder.named_parameters() if key.startswith("layer") and key.endswith(name)]

    zeroed = last_gammas(resnet(depth, 0.25))
    assert len(zeroed) == blocks
    assert all((gamma == 0).all() for gamma in zeroed)
    assert all((gamma == 1).all() for gamma in last_gammas(resnet(depth, 0.25, zero_init_last=False)))
    others = [p for key, p in resnet(depth, 0.25).named_parameters() if "bn1.weight" in key]
    assert all((gamma == 1).all() for gamma in others)


def test_batchnorm_has_the_recipes_momentum_and_eps() -> None:
    norms = [m for m in resnet(50, 0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 53
    assert {(m.momentum, m.eps) for m in norms} == {(0.1, 1e-5)}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(resnet(18, 0.25))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in converted.modules())


def test_weights_start_from_he_and_follow_the_seed() -> None:
    torch.manual_seed(1)
    one = resnet(18, 0.5).state_dict()
    torch.manual_seed(1)
    assert all(torch.equal(value, one[key]) for key, value in resnet(18, 0.5).state_dict().items())
    conv = one["layer4.1.conv1.weight"]
    assert float(conv.std()) == pytest.approx((2 / (conv.shape[0] * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"depth": 20}, r"model\.encoder\.depth is 20; choose one of 10, 18"),
        ({"stem": "mnist"}, r"model\.encoder\.stem is 'mnist'; choose imagenet or cifar"),
        ({"width": 0}, r"model\.encoder\.width"),
        ({"width": 0.3}, r"model\.encoder\.width"),
        ({"width": float("nan")}, r"model\.encoder\.width"),
        ({"width": 1e9}, r"model\.encoder\.width"),
        ({"mean": MEAN}, "set both or neither"),
        ({"mean": MEAN, "std": (0.1, 0.0, 0.1)}, "std above 0"),
        ({"mean": (0.5, 0.5), "std": (0.1, 0.1)}, "three finite"),
        ({"mean": "abc", "std": STD}, "each be three numbers"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resnet(**arguments)


# ---- normalization and specs


def test_normalization_is_inside_and_not_in_the_state_dict(images: Tensor) -> None:
    plain, inside = resnet(18, 0.25), resnet(18, 0.25, mean=MEAN, std=STD)
    inside.load_state_dict(plain.state_dict(), strict=True)
    by_hand = torchvision.transforms.functional.normalize(images, MEAN, STD)
    plain.eval(), inside.eval()
    assert torch.equal(inside(images), plain(by_hand))
    assert not torch.equal(inside(images), plain(images))
    inside.set_normalisation(None, None)
    assert torch.equal(inside(images), plain(images))


def test_normalization_follows_the_encoder_to_its_device_and_dtype() -> None:
    encoder = resnet(10, 0.25, mean=MEAN, std=STD).double()
    assert encoder.normalise.mean is not None
    assert encoder.normalise.mean.dtype == torch.float64
    encoder.set_normalisation(STD, MEAN)
    assert encoder.normalise.mean.dtype == torch.float64
    assert encoder(torch.rand(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64
    assert encoder.to("meta").normalise.mean.device.type == "meta"


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(resnet, 50, 0.25, "cifar", zero_init_last=False, mean=MEAN, std=STD),
        functools.partial(resnet, 10, 0.5),
        functools.partial(timm_encoder, "resnet10t", mean=MEAN, std=STD),
        functools.partial(timm_encoder, "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2),
    ],
)
def test_build_makes_the_same_encoder_from_its_spec(make: Callable[[], Encoder]) -> None:
    encoder = make()
    again = build(encoder.spec)
    assert again.spec == encoder.spec
    again.load_state_dict(encoder.state_dict(), strict=True)
    x_NCHW = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(x_NCHW), encoder.eval()(x_NCHW))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"factory": "os.system"},
        {"factory": "resnet", "depth": 18, "command": "ls"},
        {"factory": "resnet", "depth": []},
        {"factory": "resnet", "width": "2"},
        {"factory": "timm"},
        {"factory": "timm", "name": "hf-hub:someone/model"},
        {"factory": "timm", "name": "local-dir:/tmp"},
        {"factory": "timm", "name": "resnet10t", "checkpoint_path": "/tmp/x"},
        {"factory": "timm", "name": "resnet10t", "pretrained_cfg": {"url": "http://x"}},
    ],
)
def test_a_spec_that_is_not_ours_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"spec|timm"):
        build(spec)


def test_a_spec_never_downloads() -> None:
    assert "pretrained" not in build({"factory": "timm", "name": "resnet10t", "pretrained": True}).spec


# ---- timm


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {}),
        ("mobilenetv3_small_050", {}),  # its features are wider after pooling
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
    ],
)
def test_any_timm_model_is_an_encoder(name: str, options: dict[str, Any]) -> None:
    encoder = timm_encoder(name, **options).eval()
    theirs = timm.create_model(name, num_classes=0, **options).eval()
    theirs.load_state_dict(encoder.body.state_dict(), strict=True)
    x_NCHW = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        h_NF = encoder(x_NCHW)
        assert torch.equal(h_NF, theirs(x_NCHW))
    assert h_NF.shape == (2, encoder.feature_dim)


def test_timm_pretrained_brings_its_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(timm, "create_model", offline)
    assert timm_encoder("resnet10t", pretrained=True).spec["mean"] == [0.485, 0.456, 0.406]
    assert timm_encoder("resnet10t", pretrained=True, mean=MEAN, std=STD).spec["mean"] == list(MEAN)
    assert timm_encoder("resnet10t").spec["mean"] is None
    assert asked == [True, True, False]


def test_timm_faults_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet10s'; did you mean .*resnet10t"):
        timm_encoder("resnet10s")
    with pytest.raises(ValueError, match=r"cannot create resnet10t: .*color"):
        timm_encoder("resnet10t", color="blue")
    with pytest.raises(ValueError, match=r"not allowed as timm options: num_classes; use model\.weights"):
        timm_encoder("resnet10t", num_classes=7)
    with pytest.raises(ValueError, match="do not disable its pooling"):
        timm_encoder("resnet10t", global_pool="")(torch.rand(2, 3, 32, 32))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'simclr-lightning\[timm\]'"):
        timm_encoder("resnet10t")


# ---- weights to start from


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
    theirs = _torchvision(18)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    wanted = _features(theirs, images)
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
    theirs = _torchvision(18)
    asked: list[Any] = []

    def fetch(url: str, **options: Any) -> dict[str, Any]:
        asked.append((url, options))
        return theirs.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    encoder = resnet(18)
    load_weights(encoder, "imagenet")
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    normalized = torchvision.transforms.functional.normalize(images, preset.mean, preset.std)
    assert torch.equal(encoder.eval()(images), _features(theirs, normalized))
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
