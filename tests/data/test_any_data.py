"""Any data of a Lightning user: trained, resumed bit for bit and reloaded, with the views of `make_views`."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision import transforms

from conftest import SMALL, small_images, small_module
from simclr_lightning import SimCLR, ViewsDataModule, distributed
from simclr_lightning.data import Splits, splits_of
from simclr_lightning.views import centre_view, make_views

N, BATCH, STEPS = 20, 8, 2  # images, global batch, steps of an epoch
IMAGES, CLASSES = small_images(N)
PIXELS = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous()
TEST_IMAGES = small_images(9, seed=1)[0]


class Pictures(Dataset[Any]):
    """As torchvision's data sets: PIL images and classes."""

    classes = ("red", "green", "blue")

    def __init__(self, images: np.ndarray = IMAGES, transform: Callable[[Any], Any] = lambda image: image) -> None:
        self.images, self.targets, self.transform = images, (np.arange(len(images)) % 3).tolist(), transform
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.reads += 1
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["r", "g", "b"])})
    found = {"photo": [Image.fromarray(image) for image in IMAGES], "kind": CLASSES.tolist()}
    return datasets.Dataset.from_dict(found, features=features)


KINDS: dict[str, Callable[[], Any]] = {
    "array": lambda: (IMAGES, CLASSES),
    "torch data set": Pictures,
    "hugging face": hugging_face,
    "train and test": lambda: (Pictures(), TEST_IMAGES),
}


def trainer(folder: Path, **options: Any) -> L.Trainer:
    given = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, **options}
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **given
    )


def data_of(source: Any, **options: Any) -> ViewsDataModule:
    return ViewsDataModule(source, **{"batch_size": BATCH, "recipe": SMALL, "seed": 5, **options})


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Saved(L.Callback):
    """Save after steps 3, in the middle of epoch 1, and 6, as Lightning's ModelCheckpoint does."""

    def __init__(self, folder: Path) -> None:
        self.middle, self.last = folder / "3.ckpt", folder / "6.ckpt"

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step in (3, 6):
            trainer.save_checkpoint(self.middle if trainer.global_step == 3 else self.last)


class Seen(L.Callback):
    """Record the images and the views of every training batch."""

    def __init__(self) -> None:
        self.indices: list[list[int]] = []
        self.views: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.indices.append(batch["indices"].tolist())
        self.views.append(torch.stack((batch["x_a"], batch["x_b"])))


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_resumes_bit_for_bit_and_reloads(kind: str, tmp_path: Path) -> None:
    source = KINDS[kind]()
    whole, seen = small_module(batch=BATCH), Seen()
    saved = Saved(tmp_path)
    trainer(tmp_path, callbacks=[saved, seen]).fit(whole, datamodule=data_of(source))
    for step, (indices, views) in enumerate(zip(seen.indices, seen.views, strict=True)):
        rows = torch.tensor(indices)
        want = make_views(PIXELS[rows], seed=5, epoch=step // STEPS, indices=rows, recipe=SMALL)
        assert torch.equal(views, torch.stack(want))  # also that of PIL images and of stored PNGs
    resumed, later = small_module(batch=BATCH, seed=99), Seen()
    trainer(tmp_path, callbacks=[later]).fit(resumed, datamodule=data_of(source), ckpt_path=saved.middle)
    assert later.indices == seen.indices[3:]
    assert same(resumed, whole)
    parts = small_module(batch=BATCH, seed=7)
    reloaded = SimCLR.load_from_checkpoint(
        saved.last, encoder=parts.encoder, projector=parts.projector, loss=parts.loss,
        optimizer=parts.make_optimizer, schedule=parts.make_schedule, global_batch_size=BATCH,
    )  # fmt: skip
    assert same(reloaded, whole)
    other = data_of((255 - IMAGES, CLASSES) if kind == "array" else Pictures(255 - IMAGES))
    with pytest.raises(ValueError, match="the images differ"):
        trainer(tmp_path).fit(resumed, datamodule=other, ckpt_path=saved.middle)


def views_by_image(make: Callable[[], ViewsDataModule]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    data = make()
    found = {}
    for batch in data.train_dataloader():
        done = data.on_after_batch_transfer(batch, 0)
        found |= {i: (a, b) for i, a, b in zip(done["indices"].tolist(), done["x_a"], done["x_b"], strict=True)}
    return found


def on_ranks(
    monkeypatch: pytest.MonkeyPatch, world: int, make: Callable[[], ViewsDataModule]
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for rank in range(world):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "world_size", lambda: world)
            found |= views_by_image(make)
    return found


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["torch data set", "hugging face"])
def test_the_views_are_those_of_make_views_on_any_workers_and_ranks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = KINDS[kind]()
    rows = torch.arange(N)
    want = make_views(PIXELS, seed=5, epoch=0, indices=rows, recipe=SMALL)
    for workers, world in ((0, 1), (0, 2), (2, 1)):
        found = on_ranks(monkeypatch, world, lambda workers=workers: data_of(source, num_workers=workers))
        assert len(found) == STEPS * BATCH
        assert all(torch.equal(pair[view], want[view][i]) for i, pair in found.items() for view in range(2))


def noisy(image: Any) -> torch.Tensor:
    """All three global generators; as torchvision's `ToTensor` and v1 transforms do, on a PIL image."""
    small = image.resize((8, 8))
    x = transforms.functional.to_tensor(small) * 0.5 + 0.1 * torch.rand(3, 8, 8) + 0.1 * random.random()
    return x + 0.1 * torch.from_numpy(np.random.rand(3, 8, 8)).float()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_an_augmentation_depends_on_the_image_alone_and_leaves_the_generators_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crop = transforms.RandomResizedCrop(8)
    for augment, source in ((noisy, IMAGES), (crop, KINDS["torch data set"]())):
        make = partial(data_of, source, augment=augment)
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        expected = torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        make().view_pairs(torch.arange(2))
        assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == expected
        want = views_by_image(make)
        assert not torch.equal(*want[next(iter(want))])  # two views
        assert all(0 <= x.min() <= x.max() <= 1 for pair in want.values() for x in pair)
        for workers, world in ((0, 2), (2, 1)):
            found = on_ranks(monkeypatch, world, lambda workers=workers, make=make: make(num_workers=workers))
            assert found.keys() == want.keys()
            assert all(torch.equal(found[i][view], want[i][view]) for i in want for view in range(2))
        index = next(iter(want))
        shown = make().view_pairs(torch.tensor([index]))
        assert torch.equal(shown[1][0], want[index][1])


def test_a_run_with_an_augmentation_and_a_random_data_set_resumes_bit_for_bit(tmp_path: Path) -> None:
    def make() -> ViewsDataModule:
        return data_of(Pictures(transform=transforms.RandomRotation(30)), augment=noisy)

    whole, resumed = small_module(batch=BATCH), small_module(batch=BATCH, seed=9)
    saved = Saved(tmp_path)
    trainer(tmp_path, callbacks=[saved]).fit(whole, datamodule=make())
    torch.manual_seed(1234)  # another state of the global generator
    trainer(tmp_path).fit(resumed, datamodule=make(), ckpt_path=saved.middle)
    assert same(resumed, whole)


def test_an_augmentation_of_tensors_gets_the_pixels_as_they_are() -> None:
    flipped = data_of(IMAGES[:, :8, :8], augment=lambda x: x.flip(2), augment_input="tensor")
    x_a, x_b = flipped.view_pairs(torch.tensor([4]))
    assert torch.equal(x_a, PIXELS[4:5, :, :8, :8].flip(3) / 255)
    assert torch.equal(x_b, x_a)


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (lambda x: x.float(), "augment failed on image 0: AttributeError.*pass augment_input='tensor'"),
        (lambda x: x, "12 x 12 pixels, and the recipe 8 x 8"),
        (lambda x: transforms.functional.to_tensor(x) * 4 - 2, r"has values from -\S+ to \S+, must be in \[0, 1\]"),
        (lambda x: "a view", "is of type str"),
    ],
)
def test_an_augmentation_that_returns_no_view_is_refused_before_training(augment: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        data_of(IMAGES, augment=augment).load()


def test_a_generator_that_cannot_be_seeded_is_noticed() -> None:
    own = np.random.default_rng()
    with pytest.warns(UserWarning, match="augment gives another result for the same image"):
        data_of(IMAGES, augment=lambda image: own.integers(0, 256, (8, 8, 3), dtype=np.uint8)).load()
    rotated = Pictures(transform=lambda image: image.rotate(own.integers(0, 360)))
    with pytest.warns(UserWarning, match=r"the data set \(Pictures\) gives another result"):
        one, two = splits_of(rotated), splits_of(rotated)
    assert one.fingerprint == two.fingerprint  # no pixels are in it


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_batches_have_every_image_once_on_any_ranks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = KINDS[kind]()
    splits = data_of(source).load()
    held, test = splits.held_out.tolist(), PIXELS if splits.test is None else torch.from_numpy(TEST_IMAGES)
    loaders = ["val", "predict"] if splits.test is None else ["val", "test", "predict"]
    for world in (1, 2):
        found: dict[str, list[Any]] = {name: [] for name in loaders}
        lengths = set()
        for rank in range(world):
            with monkeypatch.context() as patch:
                patch.setattr(distributed, "rank", lambda rank=rank: rank)
                patch.setattr(distributed, "world_size", lambda world=world: world)
                data = data_of(source, batch_size=4)
                for name in loaders:
                    loader = getattr(data, f"{name}_dataloader")()
                    done = [data.on_after_batch_transfer(batch, 0) for batch in loader]
                    lengths |= {(name, len(done))} if name != "predict" else set()
                    found[name] += [
                        (i, {key: value[row] for key, value in batch.items()})
                        for batch in done for row, i in enumerate(batch["indices"].tolist())
                    ]  # fmt: skip
        assert len(lengths) == len(loaders) - 1  # the same number on all ranks
        assert sorted(i for i, _ in found["val"]) == held
        assert sorted(i for i, _ in found["predict"]) == list(range(N))
        for i, batch in found["predict"]:
            assert torch.equal(batch["x"], centre_view(PIXELS[i : i + 1], size=8)[0])
            assert int(batch["y"]) == CLASSES[i]
        for i, batch in found["val"]:
            views = make_views(PIXELS[i : i + 1], seed=5, epoch=0, indices=torch.tensor([i]), recipe=SMALL)
            assert torch.equal(torch.stack((batch["x_a"], batch["x_b"])), torch.cat(views))
        if "test" in found:
            assert sorted(i for i, _ in found["test"]) == list(range(9))
            assert test.shape[0] == 9


def test_the_batches_of_prediction_have_their_indices_in_lightning(tmp_path: Path) -> None:
    class Module(L.LightningModule):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch["indices"]

    data = data_of((IMAGES, TEST_IMAGES), predict="test")
    found = trainer(tmp_path).predict(Module(), datamodule=data)
    assert torch.cat(found).tolist() == list(range(9))


def test_labels_are_read_without_reading_images_where_the_data_set_stores_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures = Pictures()
    splits = splits_of(pictures)
    assert pictures.reads <= 6
    assert splits.class_names == ("red", "green", "blue")
    assert splits.train.labels is not None
    assert splits.train.labels.tolist() == CLASSES.tolist()
    part = splits_of(Subset(pictures, [5, 3, 4]))
    assert part.train.labels is not None
    assert part.train.labels.tolist() == [2, 0, 1]
    pairs = splits_of([(image, f"class {label}") for image, label in zip(IMAGES, CLASSES, strict=True)])
    assert pairs.class_names == ("class 0", "class 1", "class 2")
    assert splits_of(list(IMAGES)).train.labels is None
    own = splits_of(list(IMAGES), labels=[7 + 2 * label for label in CLASSES.tolist()])
    assert own.class_names == ("7", "9", "11")
    monkeypatch.setattr("simclr_lightning.data.labels.READ_AT_MOST", N - 1)
    with pytest.warns(UserWarning, match="give the data set an attribute targets"):
        large = splits_of([(image, 1) for image in IMAGES])
    assert large.train.labels is None


def test_every_form_of_the_same_images_is_read_as_the_same_pixels() -> None:
    forms: dict[str, Any] = {
        "NHWC array": IMAGES,
        "NCHW array": PIXELS.numpy(),
        "tensor": PIXELS,
        "list of arrays": list(IMAGES),
        "float tensors": [pixels / 255 for pixels in PIXELS],
        "dicts": [{"image": Image.fromarray(image), "label": 1} for image in IMAGES],
        "function of the path": lambda path: IMAGES,
        "function": lambda: Pictures(),
        "class": Pictures,
        "dict of parts": {"train": IMAGES, "validation": TEST_IMAGES},
    }
    for form, data in forms.items():
        splits = splits_of(data)
        assert all(torch.equal(splits.train.load(i), PIXELS[i]) for i in range(N)), form
        assert len(splits.held_out) == 2, form
    assert splits.test is not None  # the validation part, as there is no test part
    three = splits_of({"train": Pictures(), "valid": TEST_IMAGES, "test": TEST_IMAGES})
    assert (three.training_images, three.val_images, len(three.train)) == (N, 9, N + 9)
    assert torch.equal(three.train.load(N + 2), torch.from_numpy(TEST_IMAGES[2]).permute(2, 0, 1))
    assert isinstance(splits_of(three), Splits)


class Broken(Pictures):
    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index == 3:
            raise KeyError("gone")
        return super().__getitem__(index)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(IMAGES)


MIXED = [*IMAGES[:4], Image.fromarray(IMAGES[4]), *IMAGES[5:]]
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": ([], "the train data set is empty: it has length 0"),
    "no test images": ((IMAGES, []), "the test data set is empty"),
    "one image": (IMAGES[:1], "1 image; SimCLR needs at least 2"),
    "triples": ([(IMAGES[0], 1, "a")] * 3, r"tuples of 3 \(uint8 array, int, str\).*image=0, label=1"),
    "texts": (["a", "b"], "of type str; expected a PIL image"),
    "four channels": ([np.zeros((8, 8, 4), np.uint8)] * 3, "image 0 of the data set.*leave the alpha channel out"),
    "normalized": ([torch.randn(3, 8, 8)] * 3, "image 0 of the data set.*leave Normalize out"),
    "an iterable data set": (Stream(), "iterable data set: its images have no index"),
    "a generator": ((image for image in IMAGES), "<genexpr> was given.*no length and no index"),
    "a loader": (DataLoader(IMAGES), "pass its data set: loader.dataset"),
    "None": (None, "NoneType was given as data; expected Splits"),
    "three parts": ((IMAGES, IMAGES, IMAGES), "a tuple of 3"),
    "parts without train": ({"a": IMAGES, "b": IMAGES}, "none is called train"),
    "labels of others": ((IMAGES, [1, 2]), "2 labels for 20 images"),
    "a float array": (IMAGES / 255, "must be uint8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_set_of_images_is_refused_in_one_line(case: str) -> None:
    data, says = REFUSED[case]
    with pytest.raises(ValueError, match=says) as error:
        data_of(data).load()
    assert "\n" not in str(error.value)


def test_an_error_of_the_data_set_names_the_index() -> None:
    for data, says in (
        (Broken(), r"image 3 of the data set \(Broken\) cannot be read: KeyError: 'gone'"),
        (MIXED, r"image 4 of the data set \(list\) is a PIL image, and image 0 a uint8 array"),
    ):
        with pytest.raises(ValueError, match=says):
            list(data_of(data, batch_size=N).train_dataloader())


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_code_that_workers_cannot_get_is_refused_where_it_must_be_pickled(method: Any) -> None:
    data = data_of(IMAGES, augment=lambda image: image.resize((8, 8)), num_workers=1, start_method=method)
    with pytest.raises(ValueError, match=r"cannot be sent to loader workers \(.*at the top of a module"):
        next(iter(data.train_dataloader()))


def test_a_hugging_face_data_set_with_several_columns_needs_a_name() -> None:
    datasets = pytest.importorskip("datasets")
    data = hugging_face()
    two = data.add_column("other", [1] * N).cast_column("other", datasets.ClassLabel(num_classes=3))
    with pytest.raises(ValueError, match="several columns hold labels: kind, other"):
        splits_of(two)
    assert splits_of(two, label="kind").class_names == ("r", "g", "b")
    with pytest.raises(ValueError, match="image=picture: there is no such column; the columns are photo, kind"):
        splits_of(data, image="picture")
    with pytest.raises(ValueError, match="no column of images is found among kind"):
        splits_of(data.select_columns(["kind"]))
    with pytest.raises(ValueError, match="iterable data set"):
        splits_of(data.to_iterable_dataset())
    parts = splits_of(datasets.DatasetDict(train=data, validation=data, test=data))
    assert (parts.training_images, parts.val_images) == (N, N)
    assert parts.test is not None
