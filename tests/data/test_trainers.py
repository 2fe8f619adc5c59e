"""The data module under a plain `L.Trainer`: DDP, limits of the epoch, scripts without a guard, and notebooks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from conftest import SMALL, small_data, small_images, small_module, small_splits
from simclr_lightning import ViewsDataModule
from simclr_lightning.random import permutation
from simclr_lightning.views import make_views

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "CUDA_VISIBLE_DEVICES": ""}
# A script without `if __name__ == "__main__"`, whose data set is one of its classes.
SCRIPT = """
import json, os, sys
import lightning as L
import torch
from PIL import Image
from conftest import SMALL, small_images, small_module
from simclr_lightning import ViewsDataModule

class Pictures(torch.utils.data.Dataset):
    images = small_images(20)[0]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Image.fromarray(self.images[index])

class Seen(L.Callback):
    indices = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.indices.append(batch["indices"].tolist())

for options in OPTIONS:
    data = ViewsDataModule(Pictures(), batch_size=8, recipe=SMALL, seed=5, num_workers=2)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Seen()], **options,
    )
    trainer.fit(small_module(batch=8), datamodule=data)
with open(f"seen{trainer.global_rank}.json", "w") as file:
    json.dump(Seen.indices, file)
"""


def images_of(step: int, rows: slice = slice(None)) -> list[int]:
    """The images of a global batch of 8 of 20, by the definition of the order."""
    order = permutation(20, seed=5, epoch=step // 2)
    return order[step % 2 * 8 : step % 2 * 8 + 8][rows].tolist()


def run(code: str, folder: Path) -> None:
    (folder / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=240, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_script_without_a_guard_trains_with_ddp_and_workers_with_and_without_lightnings_sampler(
    tmp_path: Path,
) -> None:
    ddp = {"strategy": "ddp", "devices": 2}
    run(SCRIPT.replace("OPTIONS", repr([ddp, {**ddp, "use_distributed_sampler": False}])), tmp_path)
    for rank in range(2):
        part = slice(4 * rank, 4 * rank + 4)
        seen = json.loads((tmp_path / f"seen{rank}.json").read_text())
        assert seen == [images_of(step, part) for step in range(4)] * 2


def readme_example() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    found = re.search(r"## As a library.*?```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_of_the_readme_runs_as_a_script_with_workers(tmp_path: Path) -> None:
    quick = 'max_epochs=1, limit_train_batches=1, limit_val_batches=0, accelerator="cpu", logger=False'
    code = readme_example().replace("max_epochs=100", quick).replace("batch_size=256", "batch_size=4")
    code = code.replace("resnet(18,", "resnet(10, width=0.125,").replace(
        "ViewsDataModule(photos,", "ViewsDataModule('d',"
    )
    assert "num_workers" not in code
    code = code.replace("'d',", "'d', num_workers=2,").replace(
        "logger=False", "logger=False, enable_checkpointing=False"
    )
    (tmp_path / "d").mkdir()
    from PIL import Image

    for index, image in enumerate(small_images(6)[0]):
        Image.fromarray(image).save(tmp_path / "d" / f"{index}.png")
    run(code, tmp_path)


def test_a_class_of_a_notebook_is_read_by_workers(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {str(ROOT / 'tests')!r}]\n"
    code += SCRIPT.replace("OPTIONS", "[{}]") + "\nprint(Seen.indices)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    done = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(output.get("text", "") for output in done.cells[0].outputs if output.get("name") == "stdout")
    assert json.loads(shown.splitlines()[-1]) == [images_of(step) for step in range(4)]


class Seen(L.Callback):
    def __init__(self) -> None:
        self.indices: list[list[int]] = []
        self.views: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.indices.append(batch["indices"].tolist())
        self.views.append(batch["x_a"])


def fitted(
    data: ViewsDataModule, *callbacks: L.Callback, checkpoint: Path | None = None, **options: Any
) -> tuple[Seen, dict[str, torch.Tensor]]:
    seen, module = Seen(), small_module(seed=3 if checkpoint is None else 4)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[seen, *callbacks], **{"max_epochs": 4, **options},
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return seen, module.state_dict()


def order_of(epoch: int) -> list[list[int]]:
    """The batches of an epoch of 70 images in batches of 16."""
    return permutation(70, seed=5, epoch=epoch)[:64].reshape(4, 16).tolist()


class Saved(L.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_a_limited_epoch_has_the_first_batches_of_its_order_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "5.ckpt", 5)  # in the middle of the second epoch of 3 steps
    seen, whole = fitted(small_data(), saved, limit_train_batches=3)
    assert seen.indices == [batch for epoch in range(4) for batch in order_of(epoch)[:3]]
    later, resumed = fitted(small_data(), checkpoint=saved.path, limit_train_batches=3)
    assert later.indices == seen.indices[5:]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_overfit_batches_repeats_the_same_images_with_new_views() -> None:
    seen, _ = fitted(small_data(), overfit_batches=2, max_epochs=3)
    assert seen.indices == order_of(0)[:2] * 3
    images = small_splits().train.tensor
    for step, (indices, x_a) in enumerate(zip(seen.indices, seen.views, strict=True)):
        rows = torch.tensor(indices)
        assert torch.equal(x_a, make_views(images[rows], seed=5, epoch=step // 2, indices=rows, recipe=SMALL)[0])


@pytest.mark.filterwarnings("ignore:accumulate_grad_batches adds no negatives")
def test_accumulated_gradients_read_every_image_once_an_epoch(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "2.ckpt", 2)  # two optimizer steps: the first epoch
    seen, _ = fitted(small_data(), saved, accumulate_grad_batches=2, max_epochs=2)
    assert seen.indices == order_of(0) + order_of(1)
    later, _ = fitted(small_data(), checkpoint=saved.path, accumulate_grad_batches=2, max_epochs=2)
    assert later.indices == order_of(1)


def test_a_batch_that_the_devices_cannot_share_is_refused_for_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_data(batch=15)
    monkeypatch.setattr("simclr_lightning.distributed.world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"data\.batch_size=15 does not divide by 2 devices"):
        data.setup("fit")
    data.setup("predict")
