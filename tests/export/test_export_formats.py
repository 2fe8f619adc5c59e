"""Every file is loaded by the library of its format and gives the same h; other encoders are refused."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from simclr_lightning.encoders import Encoder, resnet, timm_encoder
from simclr_lightning.export import ExportError, export_as, export_encoder, formats, load_encoder, own

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
X = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(9))
Program = Callable[..., int]


def trained(encoder: Encoder, *, size: int = 40) -> Encoder:
    """Return the encoder with weights and statistics that no library has as defaults."""
    torch.manual_seed(5)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    encoder.train()
    encoder(torch.rand(4, 3, 40, 40))
    encoder.size = size
    return encoder.eval()


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {
        "resnet18": trained(resnet(18, mean=MEAN, std=STD)),
        "resnet10": trained(resnet(10)),
        "cifar": trained(resnet(10, 0.125, "cifar", mean=MEAN, std=STD)),
        "timm": trained(timm_encoder("resnet10t", mean=MEAN, std=STD)),
    }


def h_of(encoder: nn.Module, x: Tensor = X) -> Tensor:
    with torch.inference_mode():
        return encoder.eval()(x)  # type: ignore[no-any-return]


def same(found: Tensor, want: Tensor) -> bool:
    return torch.allclose(found, want, rtol=0, atol=1e-5 * max(1.0, want.abs().max().item()))


def normalized(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def code_of(card: Path) -> str:
    """Return the Python code in the last block of a card."""
    return card.read_text(encoding="utf-8").rpartition("```python\n")[2].partition("```")[0]


def test_torchvision_loads_its_file_strictly(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    path = export_as("torchvision", encoders["resnet18"], tmp_path / "out", force=False)
    model = torchvision.models.resnet18()
    assert not any(model.load_state_dict(torch.load(path, weights_only=True)))
    model.fc = nn.Identity()
    assert same(h_of(model, normalized(X)), h_of(encoders["resnet18"]))
    assert f"before the model: mean {MEAN} and std {STD}" in (tmp_path / "out" / "card.md").read_text()


@pytest.mark.parametrize("name", ["resnet18", "resnet10", "timm"])
def test_the_code_on_the_card_loads_the_file_into_timm(
    name: str, encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_as("timm", encoders[name], tmp_path / "out", force=False)
    monkeypatch.chdir(tmp_path / "out")
    x = X if name == "resnet10" else normalized(X)
    found: dict[str, Tensor] = {"images": x}
    with torch.inference_mode():
        exec(code_of(Path("card.md")), found)  # runs the code on the card
    assert same(found["h"], h_of(encoders[name]))


@pytest.mark.parametrize("name", ["resnet18", "timm", "cifar"])
def test_a_hub_folder_is_loaded_without_a_network(
    name: str, encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "out"
    about = {"Licence": "apache-2.0", "Data": "photos"}
    export_as("hub", encoders[name], folder, about=about, force=False)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\nlicense: apache-2.0\n")
    from huggingface_hub import ModelCard

    assert ModelCard.load(folder / "README.md").data.license == "apache-2.0"
    want = h_of(encoders[name])
    assert same(h_of(load_encoder(folder / "model.safetensors")), want)
    state = load_file(folder / "model.safetensors")
    assert all(torch.equal(state[key], value) for key, value in encoders[name].body.state_dict().items())
    if name == "cifar":
        assert "architecture" not in json.loads((folder / "config.json").read_text())
        return
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert (list(config["mean"]), list(config["std"]), config["crop_pct"]) == (MEAN, STD, 0.875)
    assert same(h_of(model, normalized(X)), want)


def test_the_onnx_file_gives_the_same_h_for_any_number_of_images(encoders: dict[str, Encoder], tmp_path: Path) -> None:
    import onnxruntime

    path = export_as("onnx", encoders["cifar"], tmp_path / "named.onnx", force=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["named.card.md", "named.onnx"]
    session = onnxruntime.InferenceSession(path)
    for x in (X, X[:1], torch.cat((X, X))):
        (h,) = session.run(["h"], {"images": x.numpy()})
        assert h.dtype == np.float32
        assert same(torch.from_numpy(h), h_of(encoders["cifar"], x))


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("torchvision", "cifar", "torchvision has no ResNet-10 of width 0.125 with the stem for cifar"),
        ("torchvision", "resnet10", "export it as safetensors, timm, onnx or hub"),
        ("torchvision", "timm", "torchvision has no resnet10t"),
        ("timm", "cifar", "export it as safetensors, onnx or hub"),
    ],
)
def test_an_encoder_that_a_format_cannot_express_is_refused(
    kind: str, name: str, says: str, encoders: dict[str, Encoder], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=says):
        export_as(kind, encoders[name], tmp_path / "out", force=False)
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_outputs_is_not_written(
    encoders: dict[str, Encoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = formats.plain_state

    def changed(encoder: Encoder) -> dict[str, Tensor]:
        state = real(encoder)
        state["bn1.bias"] += 0.01
        return state

    monkeypatch.setattr(formats, "plain_state", changed)
    with pytest.raises(ExportError, match="outputs of the exported file differ"):
        export_as("torchvision", encoders["resnet18"], tmp_path / "out", force=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def exported(encoders: dict[str, Encoder], tmp_path: Path) -> Path:
    card = {"data": "photos, 5 patches", "scores": {"knn_top1": 0.5}, "recipe": {"seed": 3}, "views": "some"}
    return export_encoder(encoders["resnet10"], tmp_path / "run" / "exported", card=card, size=40).parent.parent


def test_the_command_copies_the_sections_of_the_runs_card(
    exported: Path, encoders: dict[str, Encoder], simclr: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simclr("export", exported, "out", "--format", "timm", "--licence", "CC-BY-4.0") == 0
    card = Path("out/card.md").read_text()
    for text in ("photos, 5 patches", "- knn_top1: 0.5", "- seed: 3", "## Licence\n\nCC-BY-4.0", "some", "87.5 %"):
        assert text in card
    assert "model.safetensors" in capsys.readouterr().out
    modes = {path.stat().st_mode & 0o777 for path in Path("out").iterdir()}
    Path("plain").touch()
    assert modes == {Path("plain").stat().st_mode & 0o777}  # other users can read the files
    assert simclr("export", exported, "out") == 1
    assert "out exists" in capsys.readouterr().err
    assert simclr("export", exported, "out", "--force") == 0
    assert same(h_of(load_encoder("out")), h_of(encoders["resnet10"]))
    assert simclr("export", "out", "again/deep") == 0
    assert (Path("out") / "card.md").read_text().splitlines()[:6] == Path(
        "again/deep/card.md"
    ).read_text().splitlines()[:6]


def content() -> dict[Path, bytes | None]:
    """Return every path below this folder, files with their bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["run", "out", "--format", "torchvision"], "export it as safetensors, timm, onnx or hub"),
        (["run", "out", "--format", "tflite"], "invalid choice"),
        (["run"], "required: OUT"),
        (["run", "out", "--licence", " "], "on one line"),
        (["run", "out", "--licence", "MIT\nor not"], "on one line"),
        (["run", "run", "--format", "hub"], "exists"),
        (["run", "run/exported/card.md", "--force"], "is a file; safetensors takes a folder"),
        (["run", "link"], "link exists; give another OUT, or --force"),
        (["run", "link", "--force"], "link is a link that leads nowhere; safetensors takes a folder"),
        (["run", "mine.onnx", "--format", "onnx"], "mine.card.md exists; give another OUT, or --force"),
        (["run", "folder.pt", "--force", "--format", "torchvision"], "folder.card.md is a folder; remove it"),
    ],
)
def test_mistakes_are_short(
    exported: Path, simclr: Program, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    Path("link").symlink_to("nowhere")
    Path("mine.card.md").write_text("mine")
    Path("folder.card.md").mkdir()
    before = content()
    assert simclr("export", *words) != 0
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert content() == before


@pytest.mark.parametrize("out", ["out", "new/deep", "one.safetensors"])
@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device", "x"), 1)]
)
def test_an_export_that_ends_early_leaves_nothing(
    out: str, error: BaseException, code: int, exported: Path, simclr: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: object, **options: object) -> str:
        raise error

    before = content()
    with monkeypatch.context() as patch:
        patch.setattr(formats, "card_text", stop)  # the model is already written
        assert simclr("export", exported, out) == code
        assert content() == before
    assert simclr("export", exported, out) == 0
    before = content()
    with monkeypatch.context() as patch:
        patch.setattr(formats, "card_text", stop)
        assert simclr("export", exported, out, "--licence", "MIT", "--force") == code
    assert content() == before


def test_any_licence_and_a_damaged_card_give_a_readme_that_a_hub_reads(exported: Path, simclr: Program) -> None:
    (exported / "exported" / "card.md").write_bytes(b"## Data\n\n## Licence\n\n## Scores\n\xff\n")
    assert simclr("export", exported, "out", "--format", "hub") == 0
    assert "license" not in yaml.safe_load(Path("out/README.md").read_text().split("---")[1])
    assert simclr("export", exported, "out", "--format", "hub", "--force", "--licence", "Mine: see #1 'x'") == 0
    assert yaml.safe_load(Path("out/README.md").read_text().split("---")[1])["license"] == "mine: see #1 'x'"


def test_a_full_disk_raises_enospc_and_the_older_file_stays(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("older")

    def full(path: Path) -> None:
        path.write_text("half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left") as caught:
        own.write(tmp_path / "m.safetensors", full)
    assert caught.value.errno == errno.ENOSPC
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
