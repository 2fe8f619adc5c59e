"""The data module: the same views for any number of workers and devices, and its arithmetic."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import SMALL, small_data, small_splits
from simclr_lightning import distributed
from simclr_lightning.data import ViewsDataModule, folder
from simclr_lightning.data.images import Rows
from simclr_lightning.global_batch import check_batch
from simclr_lightning.views import make_views


def batches(data: ViewsDataModule, step: int = 0) -> list[dict[str, torch.Tensor]]:
    """One epoch of finished batches from ``step`` on, as Lightning would ask for them."""
    data._offset = step * data.batch_size
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def pictures(root: Path, count: int = 24) -> Path:
    splits = small_splits(count=count)
    for index in range(count):
        path = root / ("a", "b", "c")[index % 3] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(splits.train.load(index).permute(1, 2, 0).numpy()).save(path)
    return root


def hashes(data: ViewsDataModule) -> dict[tuple[int, int], str]:
    """A hash of both views of every image of epochs 0 and 1, by (epoch, index)."""
    found = {}
    for epoch in (0, 1):
        for batch in batches(data, epoch * data.steps_per_epoch):
            for index, x_a, x_b in zip(batch["indices"].tolist(), batch["x_a"], batch["x_b"], strict=True):
                key = hashlib.sha256(x_a.numpy().tobytes() + x_b.numpy().tobytes()).hexdigest()
                assert found.setdefault((epoch, index), key) == key
    return found


def on_ranks(monkeypatch: pytest.MonkeyPatch, make: object, world: int) -> dict[tuple[int, int], str]:
    found: dict[tuple[int, int], str] = {}
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)
        part = hashes(make())
        assert not found.keys() & part.keys()  # no image twice
        found |= part
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than the machine has cores
@pytest.mark.parametrize("source", ["memory", "files"])
def test_views_do_not_depend_on_workers_or_devices(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = pictures(tmp_path)

    def make(workers: int = 0) -> ViewsDataModule:
        dataset = small_splits if source == "memory" else lambda path: folder(root)
        return small_data(batch=8, workers=workers, dataset=dataset)

    want = hashes(make())
    images, steps = len(make().load().train), make().steps_per_epoch
    assert len(want) == 2 * steps * 8 <= 2 * images
    for world in (1, 2, 4):
        assert on_ranks(monkeypatch, make, world) == want
    for workers in (1, 4) if source == "files" else ():
        for world in (1, 2):
            assert on_ranks(monkeypatch, lambda workers=workers: make(workers), world) == want


def test_an_epoch_is_a_permutation_whose_remainder_changes() -> None:
    data = small_data(batch=16)  # 70 images: 4 steps and 6 left over
    seen = [{i for batch in batches(data, epoch * 4) for i in batch["indices"].tolist()} for epoch in range(3)]
    assert all(len(epoch) == 64 for epoch in seen)
    assert seen[0] != seen[1] != seen[2]
    assert len(batches(data, 2)) == 2  # from the middle on
    first = [batch["indices"].tolist() for batch in batches(data, 0)]
    assert [batch["indices"].tolist() for batch in batches(data, 2)] == first[2:]


def test_the_views_are_those_of_make_views() -> None:
    data = small_data(batch=16)
    batch = batches(data, 4)[0]  # epoch 1
    images = data.load().train.tensor[batch["indices"]]
    x_a, x_b = make_views(images, seed=5, epoch=1, indices=batch["indices"], recipe=SMALL)
    assert torch.equal(batch["x_a"], x_a)
    assert torch.equal(batch["x_b"], x_b)
    shown = data.view_pairs(batch["indices"], epoch=1)
    assert torch.equal(shown[0], x_a)


@pytest.mark.parametrize(
    ("batch", "images", "devices", "says"),
    [
        (10, 100, 4, "use 8 or 12"),
        (128, 100, 8, "use at most 96"),
        (4, 100, 4, "use 8 or more"),
        (3, 100, 8, "use 16$"),
        (150, 300, 99, "use 198$"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_with_the_arithmetic(
    batch: int, images: int, devices: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says) as error:
        check_batch(batch, images=images, devices=devices)
    assert f"data.batch_size={batch}" in str(error.value)


def test_other_images_are_refused_on_resume() -> None:
    data = small_data()
    state = data.state_dict()
    assert state["samples_seen"] == 0
    data.load_state_dict({**state, "samples_seen": 48, "steps": 3})
    assert data.samples_at(3) == 48
    with pytest.raises(ValueError, match="images differ"):
        data.load_state_dict({**state, "fingerprint": "0" * 32})


def test_evaluation_batches_are_the_whole_set_in_order() -> None:
    data = small_data()
    train = data.load().train
    x = torch.cat(list(data.eval_batches(train, torch.tensor([5, 3, 9]), batch_size=2)))
    assert x.shape == (3, 3, 8, 8)
    assert x.dtype == torch.float32
    whole = torch.cat(list(data.eval_batches(train)))
    assert torch.equal(whole[[5, 3, 9]], x)


def test_rows_of_a_set_are_a_set_of_their_own() -> None:
    train = small_splits().train
    rows = torch.tensor([9, 2, 30])
    part = Rows(train, rows)
    assert len(part) == 3
    assert list(part.names) == [train.names[9], train.names[2], train.names[30]]
    assert part.tensor is not None
    assert train.labels is not None
    for place, row in enumerate(rows.tolist()):
        assert torch.equal(part.load(place), train.load(row))
        assert torch.equal(part.tensor[place], train.load(row))
    assert part.labels.tolist() == train.labels[rows].tolist()
    assert Rows(train, torch.arange(len(train))).tensor is train.tensor  # the whole is not copied
