"""Exports are read back bit by bit; damaged files are refused."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import warm
from simclr_lightning.encoders import Encoder, load_weights, resnet, timm_encoder
from simclr_lightning.export import export_encoder, load_encoder

CARD = {
    "data": "photos, 5,400 patches",
    "recipe": {"temperature": 0.1, "views": "simclr_cifar"},
    "scores": {"knn_top1": 0.812345, "linear_top1": None},
    "licence": "Apache-2.0",
    "notes": ["one", "two"],
}


def _trained(encoder: Encoder) -> Encoder:
    """Return the encoder with weights and statistics that no library has as defaults."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    encoder.train()
    encoder(torch.rand(4, 3, 32, 32))
    return encoder


@pytest.fixture(
    params=[
        lambda: resnet(18, 0.25, "cifar"),
        lambda: resnet(50, 0.125, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
        lambda: timm_encoder("resnet10t", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
        lambda: timm_encoder("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2),
    ],
    ids=["resnet18", "resnet50", "timm", "vit"],
)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return _trained(request.param())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return export_encoder(_trained(resnet(10, 0.125, "cifar")), tmp_path / "exported", card=CARD, size=32)


def _outputs(encoder: nn.Module) -> Tensor:
    with torch.inference_mode():
        return encoder(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(9)))  # type: ignore[no-any-return]


def _contents(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return metadata, {key: value.numpy().tobytes() for key, value in load_file(path).items()}


def test_a_round_trip_is_bit_equal(encoder: Encoder, tmp_path: Path) -> None:
    path = export_encoder(encoder, tmp_path / "run" / "exported", card=CARD, size=32)
    assert path == tmp_path / "run" / "exported" / "encoder.safetensors"
    assert encoder.training
    wanted = _outputs(encoder.eval())
    for place in (path, path.parent, path.parent.parent, os.fspath(path)):
        loaded = load_encoder(place)
        assert not loaded.training
        assert loaded.size == 32
        assert loaded.spec == encoder.spec
        assert loaded.feature_dim == encoder.feature_dim
        assert torch.equal(_outputs(loaded), wanted)
    assert sorted(p.name for p in path.parent.iterdir()) == ["card.md", "encoder.safetensors"]


def test_torchvision_and_timm_load_the_file(tmp_path: Path) -> None:
    ours = _trained(resnet(18))
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(load_file(export_encoder(ours, tmp_path / "a", card={}, size=32)), strict=True)
    assert torch.equal(_outputs(theirs.eval()), _outputs(ours.eval()))
    timms = _trained(timm_encoder("resnet10t"))
    theirs = timm.create_model("resnet10t", num_classes=0)
    theirs.load_state_dict(load_file(export_encoder(timms, tmp_path / "b", card={}, size=32)), strict=True)
    assert torch.equal(_outputs(theirs.eval()), _outputs(timms.eval()))


def test_load_weights_takes_weights_and_normalization_from_an_export(encoder: Encoder, tmp_path: Path) -> None:
    path = export_encoder(encoder, tmp_path / "exported", card=CARD, size=32)
    wanted = _outputs(encoder.eval())
    fresh = encoder.__class__.__name__  # named in the failure
    for place in (path, path.parent, tmp_path):
        other = load_encoder(path)
        with torch.no_grad():
            for p in other.parameters():
                p.fill_(0.1)
        other.set_normalisation((0.1, 0.1, 0.1), (1, 1, 1))
        load_weights(other, place)
        assert torch.equal(_outputs(other), wanted), fresh
        assert other.spec == encoder.spec


def test_memory_format_compilation_and_synchronized_batchnorm_do_not_change_the_file(tmp_path: Path) -> None:
    plain = _trained(resnet(10, 0.125, "cifar"))
    wanted = _contents(export_encoder(plain, tmp_path / "plain", card={}, size=32))
    forms = {
        "channels_last": plain.to(memory_format=torch.channels_last),
        "sync": nn.SyncBatchNorm.convert_sync_batchnorm(plain),
        "compiled": torch.compile(plain),
    }
    for name, form in forms.items():
        assert _contents(export_encoder(form, tmp_path / name, card={}, size=32)) == wanted, name


def test_the_card_describes_data_scores_preparation_and_loading(exported: Path) -> None:
    card = (exported.parent / "card.md").read_text(encoding="utf-8")
    for text in (
        "photos, 5,400 patches", "- temperature: 0.1", "- knn_top1: 0.8123", "- linear_top1: None",
        "Apache-2.0", "## Notes", "- two", "32 x 32", "87.5 %", "load_encoder", "- stem: cifar",
        "Normalization, inside the model: none.",
    ):  # fmt: skip
        assert text in card
    positions = [card.index(f"## {title}") for title in ("Data", "Recipe", "Scores", "Licence", "Notes", "How to")]
    assert positions == sorted(positions)
    with safe_open(exported, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["spec"])["stem"] == "cifar"
    assert metadata["size"] == "32"


def test_a_failed_write_keeps_the_older_export(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = exported.read_bytes()

    def full(state: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("simclr_lightning.export.own.save_file", full)
    with pytest.raises(OSError, match="no space"):
        export_encoder(resnet(10, 0.125), exported.parent, card={}, size=64)
    assert exported.read_bytes() == before
    assert sorted(p.name for p in exported.parent.iterdir()) == ["card.md", "encoder.safetensors"]


def test_a_kill_during_the_write_keeps_the_older_export(exported: Path) -> None:
    before = exported.read_bytes()
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom simclr_lightning import export, files\n"
        "from simclr_lightning.encoders import resnet\n"
        "files.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export.export_encoder(resnet(10, 0.125), Path(sys.argv[1]), card={}, size=64)\n"
    )
    assert warm.Popen([sys.executable, "-c", code, exported.parent]).wait(60) == -signal.SIGKILL
    assert exported.read_bytes() == before
    assert load_encoder(exported).size == 32
    # the next export removes what the killed one left
    export_encoder(resnet(10, 0.125), exported.parent, card={}, size=64)
    assert sorted(p.name for p in exported.parent.iterdir()) == ["card.md", "encoder.safetensors"]


def test_files_are_synced_before_they_are_renamed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(Path(f"/dev/fd/{number}").resolve().name))
    export_encoder(resnet(10, 0.125), exported.parent, card={}, size=64)
    temporary = [f".{name}.{os.getpid()}.tmp" for name in ("encoder.safetensors", "card.md")]
    assert seen == [temporary[0], "exported", temporary[1], "exported"]


def test_an_open_reader_still_reads_the_older_export(exported: Path) -> None:
    before = exported.read_bytes()
    with exported.open("rb") as reader:
        export_encoder(resnet(10, 0.125), exported.parent, card={}, size=64)
        assert reader.read() == before
    assert load_encoder(exported).size == 64


def test_missing_exports_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give an exported encoder"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no encoder\.safetensors, nor exported/encoder\.safetensors"):
        load_encoder(tmp_path)
    with pytest.raises(ValueError, match="size is 0"):
        export_encoder(resnet(10, 0.125), tmp_path, card={}, size=0)


def test_flipped_and_missing_bytes_are_refused(exported: Path, tmp_path: Path) -> None:
    content = exported.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    damaged = tmp_path / "damaged.safetensors"
    # every 7th byte of the header, some bytes of the tensors; any bit
    places = [*range(0, header, 7), *range(header, len(content), len(content) // 150)]
    for number, place in enumerate(places):
        changed = bytearray(content)
        changed[place] ^= 1 << (number % 8)
        damaged.write_bytes(changed)
        with pytest.raises(ValueError, match=r"damaged\.safetensors") as caught:
            load_encoder(damaged)
        assert "\n" not in str(caught.value)
    for length in range(0, len(content), len(content) // 60):
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"damaged\.safetensors"):
            load_encoder(damaged)
    damaged.write_bytes(content)
    assert load_encoder(damaged).size == 32


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "other"}, "is not an exported encoder"),
        ({"format_version": "2"}, "newer than 1: upgrade"),
        ({"format_version": "one"}, "damaged header"),
        ({"size": "-3"}, "damaged header"),
        ({"spec": "[" * 100_000}, "damaged header"),
        ({"spec": "[1]"}, "damaged header"),
        (
            {"spec": '{"factory": "resnet", "depth": 152, "width": 64}', "sha256": None},
            "do not match its header",
        ),
        ({"spec": '{"factory": "resnet", "depth": 18}', "sha256": None}, "do not match its header"),
        ({"spec": '{"factory": "os.system"}', "sha256": None}, "names the factory 'os.system'"),
        ({"spec": '{"factory": "timm", "name": "hf-hub:a/b"}', "sha256": None}, "has no model 'hf-hub:a/b'"),
        ({"sha256": "0"}, "checksum"),
    ],
)
def test_headers_of_other_programs_are_refused(change: dict[str, Any], match: str, exported: Path) -> None:
    from simclr_lightning.encoders.weights import digest

    with safe_open(exported, "pt") as file:
        metadata = {**file.metadata(), **change}
    state = load_file(exported)
    if metadata["sha256"] is None:  # a forged header can have a valid checksum
        metadata["sha256"] = digest(state, metadata["spec"], metadata["size"])
    save_file(state, exported, metadata=metadata)
    with pytest.raises(ValueError, match=match) as caught:
        load_encoder(exported)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_weights_without_a_header_are_refused_and_load_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_file(resnet(10, 0.125).state_dict(), path)
    with pytest.raises(ValueError, match=r"load it through model\.weights"):
        load_encoder(path)
    load_weights(resnet(10, 0.125), path)
