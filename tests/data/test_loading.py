"""Loader workers where /dev/shm is small, full or missing, as in a container: the same batches, and never a hang."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import small_data, small_images
from simclr_lightning.data import folder, loading

ROOT = Path(__file__).parents[2]
CODE = """
import subprocess, sys
from pathlib import Path
import torch
from simclr_lightning.data import ViewsDataModule, folder, loading
from simclr_lightning.views import ViewRecipe

def batches(workers):
    data = ViewsDataModule(folder, batch_size=8, recipe=ViewRecipe(size=256), path=sys.argv[1], num_workers=workers)
    return [data.transfer_batch_to_device(b, torch.device("cpu"), 0) for b in data.train_dataloader()]

if __name__ == "__main__":
    expected = batches(0)
    for options in sys.argv[2:]:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/dev/shm"], check=True)
        loading._note.cache_clear()
        print("with", options, file=sys.stderr)
        for one, other in zip(batches(2), expected, strict=True):
            assert torch.equal(one["crops"], other["crops"]) and torch.equal(one["indices"], other["indices"])
        print("the same", [path.name for path in Path("/dev/shm").glob("torch_*")])
"""


@pytest.fixture(autouse=True)
def _notes() -> None:
    loading._note.cache_clear()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index, image in enumerate(small_images(26)[0]):
        Image.fromarray(image).save(tmp_path / "images" / f"{index:02d}.png")
    return tmp_path / "images"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root mounts another /dev/shm")
def test_a_small_full_or_read_only_dev_shm(images: Path, tmp_path: Path) -> None:
    (tmp_path / "batches.py").write_text(CODE)
    notes = {"size=1200k": "go through pipes", "size=64k": "cannot be started", "ro": "Read-only file system"}
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "batches.py", "images", *notes],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    if "Operation not permitted" in done.stderr or "permission denied" in done.stderr:
        pytest.skip("mounts are not allowed here")
    assert (done.returncode, done.stdout) == (0, len(notes) * "the same []\n"), done.stderr
    for note, printed in zip(notes.values(), done.stderr.split("with ")[1:], strict=True):
        assert printed.count("note: ") == 1
        assert note in printed
    assert "Traceback" not in done.stderr


def test_a_worker_without_room_sends_arrays_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        (tmp_path / f"torch_{os.getpid()}_1_0").touch()
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(loading, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loading, "get_worker_info", object)
    samples = [(4, index, torch.full((2, 3, 4, 4), index, dtype=torch.uint8)) for index in range(3)]
    collate = partial(loading._collate, field="crops", part="train")
    shared = collate(samples)
    assert shared["crops"].is_shared()
    (tmp_path / "torch_1_of_others").touch()
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    sent = collate(samples)
    assert [type(sent[key]) for key in ("epoch", "indices", "crops")] == [int, np.ndarray, np.ndarray]
    assert [path.name for path in tmp_path.iterdir()] == ["torch_1_of_others"]
    for _ in range(2):
        back = loading.as_tensors(sent)
        assert torch.equal(back["crops"], shared["crops"])
        assert torch.equal(back["indices"], shared["indices"])
    assert capsys.readouterr().err.count("--shm-size") == 1


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory"), ImportError("no sem_open")])
def test_without_semaphores_images_are_loaded_between_steps(
    error: Exception, monkeypatch: pytest.MonkeyPatch, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Context:
        def Lock(self) -> None:  # noqa: N802 - Python's name
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(loading.multiprocessing, "get_context", lambda name: Context())
        loader = small_data(batch=8, workers=2, dataset=lambda path: folder(images)).train_dataloader()
    assert loader.num_workers == 0
    assert "cannot be started" in capsys.readouterr().err


def test_more_workers_than_cores_are_the_users_choice(images: Path) -> None:
    data = small_data(batch=8, workers=64, dataset=lambda path: folder(images))
    assert data.train_dataloader().num_workers == 64  # torch would warn, and warnings are errors here
