"""Export an encoder in the formats of other libraries; each file is loaded by its library and its outputs compared.

An encoder that a format cannot express is refused, with the names of the formats that can.

Shapes: N = images, F = feature_dim, S = side in pixels.
"""

import copy
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from simclr_lightning import files
from simclr_lightning.encoders import Encoder, torchvision_models
from simclr_lightning.encoders.encoder import FACTORIES
from simclr_lightning.export.architectures import described, possible_formats, timm_name, torchvision_name
from simclr_lightning.export.card import card_text, own_code, sections
from simclr_lightning.export.own import CARD_NAME, load_encoder, plain_state, write, write_encoder
from simclr_lightning.extras import require
from simclr_lightning.text import first_line

_TOLERANCE: Final = 1e-5  # maximum difference of the outputs; relative to the largest one if that is above 1


class ExportError(ValueError):
    """The format cannot express the encoder, OUT exists, a package is missing, or the file gives other outputs."""


@dataclass(frozen=True)
class Target:
    """The folder of an export, and the names of its model file and its card."""

    folder: Path
    name: str
    card: str

    @property
    def model(self) -> Path:
        """The path of the model file."""
        return self.folder / self.name


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        names: of its files in a folder: model, card, others.
        suffixes: of the model file, if the model is a single file.
        write: writes all files; takes the encoder, the target, the sections of the card and the size.
    """

    names: tuple[str, ...]
    suffixes: tuple[str, ...]
    write: Callable[[Encoder, Target, Mapping[str, str], int], None]


def export_as(kind: str, encoder: Encoder, out: Path, *, about: Mapping[str, str] | None = None, force: bool) -> Path:
    """Write the encoder and its card in one of `FORMATS`; return the path of the model file.

    Args:
        kind: name of the format.
        encoder: in evaluation mode, with its ``size``.
        out: a folder, created if it does not exist; or a model file with a suffix of the format, next to which
            NAME.card.md is written.
        about: sections of the card, {title: Markdown}; None: all are "not stated".
        force: replace existing files.

    Raises:
        ExportError: a file exists without ``force``, the format cannot express the encoder, a package is missing, or
            the outputs of the written file differ by more than 1e-5. No file is written then.
    """
    made = FORMATS[kind]
    as_file = out.suffix.lower() in made.suffixes and not out.is_dir()
    folder, names = (out.parent, (out.name, f"{out.stem}.card.md")) if as_file else (out, made.names)
    written = [folder / name for name in names]
    there = [path for path in (out, *written) if os.path.lexists(path)]
    if there and not force:
        raise ExportError(f"{there[0]} exists; give another OUT, or --force to write over it")
    if not as_file and (found := files.in_the_way(out)):
        kinds = f", or a file named {' or '.join(made.suffixes)}" if made.suffixes else ""
        raise ExportError(f"{out} is {found}; {kind} takes a folder{kinds}")
    for path in written:
        if path.is_dir():
            raise ExportError(f"{path} is a folder; remove it or give another OUT")
    assert encoder.size is not None
    files.check_writable(out)
    with files.together(folder, out.name) as fresh:
        made.write(encoder, Target(fresh, *names[:2]), sections({}) if about is None else about, encoder.size)
    return written[0]


def _safetensors(encoder: Encoder, target: Target, about: Mapping[str, str], size: int) -> None:
    write_encoder(encoder, target.model, size=size)
    own = None if encoder.spec["factory"] in FACTORIES else copy.deepcopy(encoder.body)
    _check(encoder, load_encoder(target.model, encoder=own), size)
    files.write_text(target.folder / target.card, card_text(encoder, about, size))


def _torchvision(encoder: Encoder, target: Target, about: Mapping[str, str], size: int) -> None:
    found = torchvision_name(encoder)
    if found is None:
        raise ExportError(
            f"torchvision has no {described(encoder)}: its ResNets are 18 to 152 of width 1 with ImageNet's stem; "
            f"export it as {possible_formats(encoder)}"
        )
    name, options = found
    model = torchvision_models.torchvision_model(name, **options)
    # A strict load needs a classifier: this one is zero, and is removed again to get h.
    own = plain_state(encoder)
    state = {key: own.get(key, torch.zeros_like(value)) for key, value in model.state_dict().items()}
    model.load_state_dict(state, strict=True)
    classifier = torchvision_models.last_linear(model)
    torchvision_models.remove_classifier(model, classifier)
    _check(encoder, nn.Sequential(encoder.normalise, model), size)
    write(target.model, lambda path: torch.save(state, path))
    layer = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in classifier.split("."))
    code = f"""\
import torch, torchvision

model = torchvision.models.{name}({", ".join(f"{key}={value!r}" for key, value in options.items())})
model.load_state_dict(torch.load("{target.name}", weights_only=True))  # strict
model{layer} = torch.nn.Identity()  # the classifier in the file is zero; strict loading needs it
h = model.eval()(images)  # images (N, 3, {{size}}, {{size}}) -> h (N, {{width}})
"""
    files.write_text(target.folder / target.card, card_text(encoder, about, size, code=code, normalizes=False))


def _timm(encoder: Encoder, target: Target, about: Mapping[str, str], size: int) -> None:
    name, options = _in_timm(encoder)
    _check(encoder, nn.Sequential(encoder.normalise, _made_by_timm(encoder)), size)
    write_encoder(encoder, target.model, size=size)
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    code = f"""\
import timm
from safetensors.torch import load_file

model = timm.create_model("{name}", num_classes=0{arguments})  # without a classifier, so it returns h
model.load_state_dict(load_file("{target.name}"))  # strict
h = model.eval()(images)  # images (N, 3, {{size}}, {{size}}) -> h (N, {{width}})
"""
    files.write_text(target.folder / target.card, card_text(encoder, about, size, code=code, normalizes=False))


def _hub(encoder: Encoder, target: Target, about: Mapping[str, str], size: int) -> None:
    """Write config.json, model.safetensors and README.md, in timm's layout if timm has the architecture."""
    write_encoder(encoder, target.model, size=size)
    found = timm_name(encoder)
    config: dict[str, Any] = {"simclr_lightning": encoder.spec | {"size": size}, "num_features": encoder.feature_dim}
    code, normalizes = own_code(encoder, f"this/folder/{target.name}"), True
    if found is not None:
        name, options = found
        config |= {
            "architecture": name,
            "num_classes": 0,
            "model_args": options,
            "pretrained_cfg": _pretrained(encoder, size),
        }
        code, normalizes = _HUB_CODE, False
    files.write_text(target.folder / "config.json", json.dumps(config, indent=2) + "\n")
    text = card_text(encoder, about, size, code=code, normalizes=normalizes)
    files.write_text(target.folder / target.card, _front_matter(about, in_timm=found is not None) + text)


_HUB_CODE: Final = """\
import timm

model = timm.create_model("hf-hub:USER/NAME", pretrained=True)  # or "local-dir:this/folder"; returns h
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
h = model.eval()(images)  # images (N, 3, {size}, {size}) -> h (N, {width})
"""


def _onnx(encoder: Encoder, target: Target, about: Mapping[str, str], size: int) -> None:
    require("onnxscript", "the onnx format", "onnx")  # torch's exporter, which prints a long error without it
    require("onnxruntime", "the onnx format", "onnx")
    import onnxruntime

    x_2SS = torch.rand(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1)

    def fill(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns about its own code
            try:
                torch.onnx.export(
                    encoder, (x_2SS,), path, dynamo=True, external_data=False, verbose=False, input_names=["images"],
                    output_names=["h"], dynamic_shapes=({0: batch},),
                )  # fmt: skip
            except torch.onnx.OnnxExporterError as error:
                why = first_line(error.__cause__ or error)
                raise ExportError(f"torch cannot export {described(encoder)} to ONNX: {why}") from error
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        _check(encoder, lambda x: torch.from_numpy(session.run(["h"], {"images": x.numpy()})[0]), size)

    write(target.model, fill)
    code = f"""\
import onnxruntime

session = onnxruntime.InferenceSession("{target.name}")
(h,) = session.run(["h"], {{"images": images}})  # images (N, 3, {{size}}, {{size}}) float32 -> h (N, {{width}})
"""
    files.write_text(target.folder / target.card, card_text(encoder, about, size, code=code))


FORMATS: Final[dict[str, Format]] = {
    "safetensors": Format(("encoder.safetensors", CARD_NAME), (".safetensors",), _safetensors),
    "torchvision": Format(("encoder.pth", CARD_NAME), (".pth", ".pt"), _torchvision),
    "timm": Format(("model.safetensors", CARD_NAME), (".safetensors",), _timm),
    "onnx": Format(("encoder.onnx", CARD_NAME), (".onnx",), _onnx),
    "hub": Format(("model.safetensors", "README.md", "config.json"), (), _hub),
}
"""All formats by name."""


def _check(encoder: Encoder, other: Callable[[Tensor], Tensor], size: int) -> None:
    """Raise if the two give different h for three random images (the model was traced with two)."""
    x_NCSS = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    if isinstance(other, nn.Module):
        other.eval()
    with torch.inference_mode():
        h_NF, found_NF = encoder(x_NCSS), other(x_NCSS)
    difference = (h_NF - found_NF).abs().max().item()
    if not difference <= _TOLERANCE * max(1.0, h_NF.abs().max().item()):
        raise ExportError(f"the outputs of the exported file differ by {difference:.2g}, so it was not written")


def _in_timm(encoder: Encoder) -> tuple[str, dict[str, Any]]:
    found = timm_name(encoder)
    if found is None:
        raise ExportError(
            f"timm has no {described(encoder)}: its ResNets have width 1 and ImageNet's stem; "
            f"export it as {possible_formats(encoder)}"
        )
    return found


def _made_by_timm(encoder: Encoder) -> nn.Module:
    """Return timm's model with the weights of the encoder, loaded strictly."""
    name, options = _in_timm(encoder)
    require("timm", "the timm format")
    import timm

    model: nn.Module = timm.create_model(name, num_classes=0, **options)
    model.load_state_dict(plain_state(encoder), strict=True)
    return model


def _pretrained(encoder: Encoder, size: int) -> dict[str, Any]:
    """Return the values that timm's transforms read; in timm the normalization is outside the model."""
    return {
        "input_size": [3, size, size], "fixed_input_size": False, "interpolation": "bicubic",
        "crop_pct": 1.0 if size <= 32 else 0.875, "crop_mode": "center", "num_classes": 0,
        "mean": encoder.spec.get("mean") or [0.0, 0.0, 0.0], "std": encoder.spec.get("std") or [1.0, 1.0, 1.0],
    }  # fmt: skip


def _front_matter(about: Mapping[str, str], *, in_timm: bool) -> str:
    """Return the metadata of the hub for the head of README.md."""
    name = about["Licence"].strip().splitlines()[0].lower()
    plain = re.fullmatch("[a-z0-9.+-]+", name) is not None  # other names are quoted for YAML
    named = [] if name == "not stated" else [f"license: {name if plain else json.dumps(name)}"]
    library = "timm" if in_timm else "simclr-lightning"
    tags = ["tags:", "- simclr", "- self-supervised", "- image-feature-extraction", f"library_name: {library}"]
    return "\n".join(["---", *named, *tags, "pipeline_tag: image-feature-extraction", "---", "", ""])
