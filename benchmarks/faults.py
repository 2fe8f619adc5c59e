"""Faults at full length: kills, damage, hostility, bad input and NaN. The tests hold a short form of each.

    python benchmarks/faults.py                          # everything: about 25 minutes on one core
    python benchmarks/faults.py --part saves chains      # some of it
    python benchmarks/faults.py --share 0.1              # a tenth of the trials

Every trial runs in a forked child of this process, so that a kill costs a restart and not an import. Prints a table of
trials and failures, writes JSON beside this file, and exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import math
import os
import pickle
import random
import shlex
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from simclr_lightning import checkpoint, export_encoder, resnet
from simclr_lightning.callbacks import NonFiniteError
from simclr_lightning.cli import main as simclr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_checks import BAD, hostile

from conftest import WORDS, small_images, small_module

WRONG_WORDS = """\
loss.temprature=1
modle=tiny
model=resnet5O
experiment=cifar11
loss.temperature=
=
a
+
~data
data.batch_size=7 8
data.batch_size=65
trainer.devices=[1
data={
hydra.run.dir=/proc/none/x
ckpt_path=last
ckpt_path=nowhere
ckpt_path=s3://b/c
trusted=[os]"""
# Of the other commands: in a folder with pictures/, an encoder in exported/, file (a text), empty/ and x.npz/.
WRONG_COMMANDS = """\
serch exported pictures
rank
rank a b
embed
embed exported pictures
embed exported pictures x.txt
embed exported pictures x.npz
embed exported pictures no/x.csv
embed exported pictures file/x.csv
embed exported pictures pictures/0.npz --map pca
embed exported pictures y.npz --map som
embed exported file y.npz
embed exported empty y.npz
embed exported folder-cut y.npz
embed file pictures y.npz
embed ~nobody-of-this-name pictures y.npz
search exported
search exported nowhere
search exported empty
search exported folder-zero
search exported folder-one
search exported pictures -k 0
search exported pictures -k many
search exported pictures --threshold nan
search exported pictures --threshold 0
search exported pictures --query
search exported pictures --query file
search exported pictures --query pictures
search exported pictures --query pictures/0.png --duplicates
search exported pictures --index annoy
search exported pictures --out file
search file pictures
export exported
export exported exported
export exported new --format tflite
export exported new --format timm
export exported new --format torchvision
export exported new --licence ''
export exported file --force
export file new
export empty new
report
report nowhere
report file
report empty
report exported
report . axes=[a,b,c]
report . logger=mlflow
report . hello
pack
pack pictures
pack nowhere new
pack file new
pack empty new
pack pictures pictures
pack pictures file
pack pictures file/new
pack pictures no/new
pack folder-cut new
pack folder-one new quality=0
pack pictures new short_side=-1
pack pictures new max_pixels=1e9
pack pictures new on_corrupt=maybe
pack pictures new qualty=90
pack ~nobody-of-this-name new
evaluate exported protocol=[knn,lineer]
evaluate exported protocol=[]
evaluate exported data=folder
evaluate exported data=folder data.path=empty
evaluate exported data=packed data.path=pictures
evaluate exported transfer=[cifar11]
evaluate exported transfer=[folder]
evaluate exported select_on=test
evaluate exported knn.k=1000000
evaluate exported seeds=[0,0]
evaluate exported semi.start=9
evaluate exported protocol=semi semi.start=1
evaluate exported accelerator=mps
evaluate exported accelerator=tpu
evaluate exported model=resnet18
evaluate exported -m
evaluate file
evaluate empty
evaluate file model=resnet18"""
NOT_WRITTEN = (math.inf, -math.inf)  # JSON has no word for them
LONGEST = 120  # seconds after which a child counts as hanging
Failures = Iterator[str]


class Child:
    """A forked process that runs ``work``; what it says goes to ``said``."""

    def __init__(self, work: Callable[[], int | None], said: Path) -> None:
        self.said = said
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.setpgid(0, 0)
                handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                torch.set_num_threads(1)  # OpenMP's threads did not come along
                code = int(work() or 0)
                sys.stdout.flush()
                sys.stderr.flush()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code & 255)
        with contextlib.suppress(OSError):  # the child may have been first
            os.setpgid(self.pid, self.pid)

    def kill(self, after: float) -> bool:
        """Kill the whole tree after so many seconds; whether it was still running."""
        end = time.monotonic() + after
        while time.monotonic() < end:
            if self._ended():
                return False
            time.sleep(min(0.002, after))
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return True

    def code(self) -> int | None:
        """The exit code; None when it hung and was killed."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            if self._ended():
                return self._code
            time.sleep(0.005)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None

    def _ended(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._code = os.waitstatus_to_exitcode(status)
        return bool(pid)


def program(*words: object) -> Callable[[], int]:
    return lambda: simclr([str(word) for word in words])


def images(folder: Path) -> Path:
    pixels, labels = small_images(88)
    path = folder / "images.npz"
    part = slice(64), slice(64, None)
    np.savez(
        path,
        train_images=pixels[part[0]],
        train_labels=labels[part[0]],
        test_images=pixels[part[1]],
        test_labels=labels[part[1]],
    )
    return path


def saves(trials: int, folder: Path) -> Failures:
    """SIGKILL at a random moment of a loop of saves, every other time with the temporary folder on another disk."""
    rng, run, newest = random.Random(0), folder / "run", 0

    def save_on() -> None:
        step = newest
        while True:
            step += 1
            weights = torch.full((200_000,), float(step))
            checkpoint.save({"state_dict": {"w": weights}, "global_step": step}, run / "checkpoints" / checkpoint.LAST)
            checkpoint.copy(run / "checkpoints" / checkpoint.LAST, run / "checkpoints" / checkpoint.BEST)

    first = Child(save_on, folder / "said")
    while checkpoint.newest(run) is None:
        time.sleep(0.01)
    first.kill(0)
    for trial in range(trials):
        tempfile.tempdir = "/dev/shm" if trial % 2 and Path("/dev/shm").is_dir() else None
        Child(save_on, folder / "said").kill(rng.uniform(0.001, 0.06))
        found = checkpoint.newest(run)
        if found is None:
            yield f"kill {trial}: nothing loadable"
            continue
        state = checkpoint.load(found[0])
        if not (state["state_dict"]["w"] == state["global_step"]).all() or state["global_step"] < newest:
            yield f"kill {trial}: step {state['global_step']} after {newest}"
        newest = state["global_step"]
        if trial % 3 == 0:
            checkpoint.sweep_debris(run)
    tempfile.tempdir = None


def chains(trials: int, folder: Path) -> Failures:
    """Runs killed at random moments and resumed until they finish: the same weights, the exact number of steps."""
    rng, path = random.Random(1), images(folder)
    words = (*WORDS, f"data.path={path}", "trainer.max_epochs=4", "callbacks.checkpoints.every_n_steps=1")
    started = time.monotonic()
    assert Child(program("train", *words, f"hydra.run.dir={folder / 'whole'}"), folder / "said").code() == 0
    length = time.monotonic() - started
    want = weights(folder / "whole")
    for trial in range(trials):
        run = folder / f"chain{trial}"
        for link in range(40):
            saved = checkpoint.newest(run) is not None
            go = (f"ckpt_path={run}",) if saved else (*words, f"hydra.run.dir={run}")
            child = Child(program("train", *go), folder / "said")
            if link < 6 and child.kill(rng.uniform(0.1, length)):
                continue
            if link >= 6 and (code := child.code()) != 0:
                yield f"chain {trial}: exit {code}: {child.said.read_text()[-300:]}"
            break
        got = weights(run)
        if got[0] != want[0] or any(not torch.equal(got[1][name], x) for name, x in want[1].items()):
            yield f"chain {trial}: step {got[0]} of {want[0]}, or other weights"
        shutil.rmtree(run)


def weights(run: Path) -> tuple[int, dict[str, torch.Tensor]]:
    found = checkpoint.newest(run)
    if found is None:
        return -1, {}
    state = checkpoint.load(found[0])
    return int(state["global_step"]), state["state_dict"]


def flips(trials: int, folder: Path) -> Failures:
    """One bit flipped, or the end cut off: refused, and the checkpoint before it is used."""
    rng, run = random.Random(2), folder / "run"
    path = run / "checkpoints" / checkpoint.LAST
    for step in (1, 2):
        checkpoint.save({"state_dict": small_module().state_dict(), "global_step": step}, path)
    whole = path.read_bytes()
    for trial in range(trials):
        broken = bytearray(whole)
        if trial % 2:
            broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            broken = broken[: rng.randrange(len(whole))]
        path.write_bytes(broken)
        try:
            checkpoint.load(path)
            yield f"trial {trial} was loaded"
        except checkpoint.CheckpointError:
            pass
        found = checkpoint.newest(run)
        if found is None or found[0].name != checkpoint.PREVIOUS:
            yield f"trial {trial}: the previous one was not found"


def malformed(folder: Path) -> list[tuple[str, ...]]:
    """Command lines that must be refused: values, words, files, folders, archives, checkpoints."""
    path = images(folder)
    things(folder)
    good = ("train", *WORDS, f"data.path={path}")
    values = [(key, json.dumps(value)) for key, wrong in BAD.items() for value in wrong if value not in NOT_WRITTEN]
    lines = [(*good, f"{key}={value}") for key, value in values]
    lines += [(*good, word) for word in WRONG_WORDS.splitlines()]
    lines += [("train", *WORDS, f"data.path={bad}") for bad in files(folder)]
    lines += [("train", *WORDS[1:], "data=folder", f"data.path={bad}") for bad in folders(folder)]
    lines += [tuple(shlex.split(line)) for line in WRONG_COMMANDS.splitlines()]
    lines += [("evaluate",), ("evaluate", "nowhere"), ("embed", "a"), ("embed", "a", "b", "c"), ("tarin",)]
    lines += [("embed", str(folder), str(folder), str(folder / "x.npz"))]
    return lines


def things(folder: Path) -> None:
    """What `WRONG_COMMANDS` speak of."""
    from PIL import Image

    export_encoder(resnet(10, 0.125, "cifar"), folder / "exported", card={}, size=12)
    for name in ("pictures", "empty", "x.npz"):
        (folder / name).mkdir(exist_ok=True)
    for number, pixels in enumerate(small_images(6)[0]):
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    (folder / "file").write_text("text")


def files(folder: Path) -> list[Path]:
    """Array files that are none."""
    good = (folder / "images.npz").read_bytes()
    pixels, labels = small_images(20)
    contents: dict[str, bytes | dict[str, np.ndarray]] = {
        "empty": b"",
        "text": b"hello",
        "cut": good[: len(good) // 2],
        "pickle": pickle.dumps({"train_images": 1}),
        "no key": {"images": pixels},
        "float": {"train_images": pixels / 255.0},
        "shape": {"train_images": pixels[0]},
        "channels": {"train_images": pixels[..., :2]},
        "labels": {"train_images": pixels, "train_labels": labels[:3], "test_images": pixels, "test_labels": labels},
        "one image": {"train_images": pixels[:1]},
        "objects": {"train_images": np.array([{"a": 1}] * 4, dtype=object)},
    }
    made = [folder / "missing.npz"]
    for name, content in contents.items():
        made.append(folder / f"{name}.npz")
        if isinstance(content, bytes):
            made[-1].write_bytes(content)
        else:
            np.savez(made[-1], **content)
    return made


def folders(folder: Path) -> list[Path]:
    """Image folders that cannot be trained on."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(small_images(1)[0][0]).save(buffer, "JPEG")
    good = buffer.getvalue()
    bomb = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0) + b"\0\0\0\0"
    contents = {
        "folder-empty": {},
        "folder-one": {"a.jpg": good},
        "folder-text": {f"{i}.txt": b"x" for i in range(9)},
        "folder-zero": {f"{i}.jpg": b"" for i in range(40)},
        "folder-cut": {f"{i}.jpg": good[:60] for i in range(40)},
        "folder-bomb": {f"{i}.png": bomb for i in range(40)},
        "folder-lies": {f"{i}.png": b"GIF89a" for i in range(40)},
    }
    made = [folder / "folder-missing"]
    for name, inside in contents.items():
        made.append(folder / name)
        made[-1].mkdir(exist_ok=True)
        for file, data in inside.items():
            (made[-1] / file).write_bytes(data)
    (folder / "folder-loop").mkdir(exist_ok=True)
    (folder / "folder-loop" / "again").symlink_to(folder / "folder-loop")
    return [*made, folder / "folder-loop", folder / "images.npz"]


def inputs(trials: int, folder: Path) -> Failures:
    """Malformed command lines and data: a short message, no traceback, never exit 0, never a hang."""
    lines = malformed(folder)
    random.Random(3).shuffle(lines)
    os.chdir(folder)
    good = program("train", *WORDS, f"data.path={folder / 'images.npz'}", "trainer.max_steps=1")
    assert Child(good, folder / "said").code() == 0  # so it is the fault that is refused
    for words in lines[:trials]:
        child = Child(program(*words), folder / "said")
        code, said = child.code(), child.said.read_text()
        if code in (0, None, 70) or "Traceback" in said or len(said.strip().splitlines()) > 8:
            yield f"{' '.join(words[-2:])}: exit {code}: {said[-300:]}"


class Pickled:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.canary, "ran")


def hostile_checkpoints(trials: int, folder: Path) -> Failures:
    """Pickles that would write a file, in every place of a checkpoint or instead of it, with a digest that fits."""
    canary, path = folder / "canary", folder / "run" / "checkpoints" / checkpoint.LAST
    rng = random.Random(4)
    places = ["state_dict", "optimizer_states", "callbacks", "loops", "hyper_parameters", "extra", "global_step"]
    for trial in range(trials):
        state: dict[str, object] = {"state_dict": {"w": torch.zeros(3)}, "global_step": 1}
        place = rng.choice(places)
        evil: object = Pickled(canary)
        for _ in range(rng.randrange(4)):
            evil = rng.choice(({"x": evil}, [evil], (evil,)))
        kind = trial % 3
        if kind == 0:
            checkpoint.save({**state, place: evil}, path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(evil, protocol=rng.choice((2, 4))))
            if kind == 2:  # the archive of torch.save, its pickle exchanged
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("archive/data.pkl", pickle.dumps(evil, protocol=2))
                    archive.writestr("archive/version", "3\n")
            checkpoint.write_text(path.with_name(path.name + ".sha256"), checkpoint._sha256(path) + "\n")
        for words in ((f"ckpt_path={path}",), (*WORDS, f"data.path={folder / 'images.npz'}", f"model.weights={path}")):
            child = Child(program("train", *words), folder / "said")
            if child.code() in (0, None, 70) or canary.exists():
                yield f"checkpoint {trial} ({place}): {child.said.read_text()[-300:]}"
            canary.unlink(missing_ok=True)


def hostile_configs(trials: int, folder: Path) -> Failures:
    """Targets that would write a file, in a configuration on the command line or in a saved run's."""
    canary, path = folder / "canary", images(folder)
    (folder / "source").write_text("x")
    nodes = list(hostile(canary).items())
    first = program("train", *WORDS, f"data.path={path}", f"hydra.run.dir={folder / 'run'}")
    assert Child(first, folder / "said").code() == 0
    saved = folder / "run" / ".hydra" / "config.yaml"
    text = saved.read_text()
    for trial in range(trials):
        name, node = nodes[trial % len(nodes)]
        place = ("optimizer", "loss", "schedule")[trial % 3]
        if trial % 2:
            words = ("train", *WORDS, f"data.path={path}", f"+{place}.mine={literal(node)}")
        else:
            saved.write_text(text + f"\nextra: {json.dumps(node)}\n")
            words = ("train", f"ckpt_path={folder / 'run'}", "trainer.max_epochs=3")
        child = Child(program(*words), folder / "said")
        if child.code() in (0, None, 70) or canary.exists():
            yield f"config {trial} ({name} in {place}): {child.said.read_text()[-300:]}"
        canary.unlink(missing_ok=True)
        saved.write_text(text)


def literal(node: object) -> str:
    """A value in Hydra's grammar."""
    if isinstance(node, dict):
        return "{" + ",".join(f"{key}:{literal(value)}" for key, value in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(literal, node)) + "]"
    return json.dumps(node)


def nan(trials: int, folder: Path) -> Failures:
    """NaN or infinity in one step's loss or gradient: a message with the step, and no checkpoint that is not finite."""
    import lightning as L

    from conftest import small_data, small_trainer

    for trial in range(trials):
        step, run, module = trial % 12, folder / f"run{trial}", small_module()
        value = (math.nan, math.inf, -math.inf)[trial % 3]

        class Poison(L.Callback):
            def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
                if trainer.global_step == step:  # noqa: B023  (used within this turn of the loop)
                    next(pl_module.parameters()).grad.view(-1)[trial % 5] = value  # noqa: B023  (the same)

        try:
            small_trainer(run, extra=[Poison()]).fit(module, datamodule=small_data())
            yield f"NaN {trial}: trained on"
        except NonFiniteError as error:
            if f"at step {step} " not in str(error):
                yield f"NaN {trial}: {error}"
        for file in run.glob("checkpoints/*.ckpt"):
            if not all(x.isfinite().all() for x in checkpoint.load(file)["state_dict"].values()):
                yield f"NaN {trial}: {file.name} is not finite"


PARTS: dict[str, tuple[Callable[[int, Path], Failures], int]] = {
    "saves": (saves, 300),
    "chains": (chains, 50),
    "flips": (flips, 1000),
    "inputs": (inputs, 500),
    "hostile checkpoints": (hostile_checkpoints, 25),
    "hostile configs": (hostile_configs, 25),
    "nan": (nan, 20),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| fault | trials | failures | seconds |\n|---|---|---|---|")
    for name in options.part:
        check, trials = PARTS[name]
        trials, started = max(1, round(trials * options.share)), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            failures = list(check(trials, Path(folder).resolve()))
            os.chdir("/")
        seconds = round(time.monotonic() - started, 1)
        rows.append({"fault": name, "trials": trials, "failures": failures, "seconds": seconds})
        print(f"| {name} | {trials} | {len(failures)} | {seconds} |", flush=True)
        for failure in failures[:5]:
            print(f"  {failure}", file=sys.stderr)
    result = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "rows": rows}
    options.out.absolute().write_text(json.dumps(result, indent=1) + "\n")
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
