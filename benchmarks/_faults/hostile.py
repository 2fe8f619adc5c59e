"""Checkpoints and configurations that would write a canary file, if the program ran their code."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import torch

from _faults.child import SMALL, Child, Failures, array_file, program
from simclr_lightning import checkpoint

PLACES = ("state_dict", "optimizer_states", "callbacks", "loops", "hyper_parameters", "extra", "global_step")


class Pickled:
    """An object that writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.canary, "ran")


def write_checkpoint(path: Path, canary: Path, kind: int, rng: random.Random) -> str:
    """Write a hostile checkpoint with a digest that fits, and return the place of the object in it.

    Kind 0 is a checkpoint with the object, 1 the pickled object alone, 2 an archive like torch.save's with this pickle.
    """
    place, evil = rng.choice(PLACES), Pickled(canary)
    nested: object = evil
    for _ in range(rng.randrange(4)):
        nested = rng.choice(({"x": nested}, [nested], (nested,)))
    if kind == 0:
        state: dict[str, object] = {"state_dict": {"w": torch.zeros(3)}, "global_step": 1}
        checkpoint.save({**state, place: nested}, path)
        return place
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 1:
        path.write_bytes(pickle.dumps(nested, protocol=rng.choice((2, 4))))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(nested, protocol=2))
            archive.writestr("archive/version", "3\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}\n")
    return "the whole file"


def hostile_checkpoints(trials: int, folder: Path) -> Failures:
    """Resume from hostile checkpoints, and take weights from them."""
    canary, path = folder / "canary", folder / "run" / "checkpoints" / checkpoint.LAST
    rng, data = random.Random(4), array_file(folder)
    for trial in range(trials):
        place = write_checkpoint(path, canary, trial % 3, rng)
        for words in ((f"ckpt_path={path}",), (*SMALL, f"data.path={data}", f"model.weights={path}")):
            child = Child(program("train", *words), folder / "output")
            if not child.refused() or canary.exists():
                yield f"checkpoint {trial} ({place}): {child.message()}"
            canary.unlink(missing_ok=True)


def hostile_configs(trials: int, folder: Path) -> Failures:
    """Pass targets that would write a file, on the command line and in a saved run's configuration."""
    canary, path, run = folder / "canary", array_file(folder), folder / "run"
    (folder / "source").write_text("x")
    first = program("train", *SMALL, f"data.path={path}", f"hydra.run.dir={run}")
    assert Child(first, folder / "output").code() == 0
    saved = run / ".hydra" / "config.yaml"
    text = saved.read_text()
    nodes = list(targets(canary).items())
    for trial in range(trials):
        name, node = nodes[trial % len(nodes)]
        place = ("optimizer", "loss", "schedule")[trial % 3]
        if trial % 2:
            words = (*SMALL, f"data.path={path}", f"+{place}.mine={literal(node)}")
        else:
            saved.write_text(text + f"\nextra: {json.dumps(node)}\n")
            words = (f"ckpt_path={run}", "trainer.max_epochs=3")
        child = Child(program("train", *words), folder / "output")
        if not child.refused() or canary.exists():
            yield f"config {trial} ({name} in {place}): {child.message()}"
        canary.unlink(missing_ok=True)
        saved.write_text(text)


def targets(canary: Path) -> dict[str, dict[str, Any]]:
    """Return nodes whose targets no configuration may call; most would write the canary file."""
    file, shell, source = str(canary), f"touch '{canary}'", str(canary.parent / "source")
    path = {"_target_": "pathlib.Path", "_args_": [file]}
    url = f"file://{source}"
    system = {"_target_": "os.system", "command": shell}
    calls: dict[str, dict[str, Any]] = {
        "os.system": {"command": shell},
        "posix.system": {"command": shell},
        "os.popen": {"cmd": shell},
        "os.mkdir": {"path": file},
        "os.rename": {"src": source, "dst": file},
        "builtins.eval": {"_args_": [f"open({file!r}, 'w')"]},
        "builtins.exec": {"_args_": [f"open({file!r}, 'w')"]},
        "builtins.open": {"file": file, "mode": "w"},
        "subprocess.Popen": {"args": ["touch", file]},
        "subprocess.check_output": {"_args_": [["touch", file]]},
        "pathlib.Path.write_text": {"_args_": [path, "x"]},
        "urllib.request.urlretrieve": {"url": url, "filename": file},
        "shutil.copy": {"src": source, "dst": file},
        "torch.save": {"obj": 1, "f": file},
        "torch.load": {"f": source},
        "torch.hub.load_state_dict_from_url": {"url": url, "model_dir": str(canary.parent), "file_name": canary.name},
        "torchvision.datasets.utils.download_url": {"url": url, "root": str(canary.parent), "filename": canary.name},
        "simclr_lightning.checkpoint.os.system": {"command": shell},
        "simclr_lightning.run_folder.write_summary": {"_args_": [path, {}]},
        "simclr_lightning.projector.nn.Module.__init__.__globals__": {"x": 1},
        "functools.partial": {"_args_": [system]},
        "hydra.utils.call": {"_args_": [system]},
        "importlib.import_module": {"name": "this"},
        "torch.optim.SGD.load_state_dict": {"state_dict": {}},
        "torch.optim.SGD()": {},
    }
    return {target: {"_target_": target, **arguments} for target, arguments in calls.items()}


def literal(node: object) -> str:
    """Return a value in Hydra's grammar."""
    if isinstance(node, dict):
        return "{" + ",".join(f"{key}:{literal(value)}" for key, value in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(literal, node)) + "]"
    return json.dumps(node)
