"""The LightningDataModule: paired views of the images of any source, the same for any number of workers and devices.

The order of an epoch is a permutation keyed by (seed, epoch). A global batch is a slice of it, and every rank has a
contiguous part of the batch. The position is the number of images seen, so a resumed run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simclr_lightning import distributed
from simclr_lightning.data import position
from simclr_lightning.data.adapt import splits_of
from simclr_lightning.data.aspects import long_images
from simclr_lightning.data.describe import described
from simclr_lightning.data.finishing import as_pair, centred, fits, floats, view_pairs
from simclr_lightning.data.images import ImageSet, Splits
from simclr_lightning.data.loading import Loader, as_tensors, center_loader, fork, pair_loader, train_loader
from simclr_lightning.data.samples import Augmentation, Batch, InputKind
from simclr_lightning.global_batch import check_batch
from simclr_lightning.views import ViewRecipe, centre_view, finish_views, make_views, recipe as named_recipe
from simclr_lightning.views.kernels import onto


class ViewsDataModule(L.LightningDataModule):
    """Paired views of any images, in global batches.

    It works with any `L.Trainer` and strategy, with or without ``use_distributed_sampler=False``. A run that resumes
    with ``fit(ckpt_path=)`` continues at the next image. With ``limit_train_batches`` an epoch has the first batches of
    its order, and a resume is exact for the same limit. With ``overfit_batches`` every epoch has the same images in the
    same order, with new views.

    Args:
        dataset: the images: everything that `splits_of` takes, such as an array, a torch or Hugging Face data set,
            (train, test), or a function that returns one of these for ``path``.
        batch_size: the global batch: images over all devices and nodes in one step.
        recipe: a `ViewRecipe` or the name of one.
        seed: the seed of the order and of every random number of a view.
        path: the place of the images, for a function; None for sources that need none.
        num_workers: processes that decode; sets in memory use none, except with ``augment``.
        resident: whether a set in memory is stored on the accelerator: True, False, or "auto" (if it takes at most a
            tenth of the device's free memory).
        lazy: pass the network a function that makes the views of some images, instead of the views of the whole
            batch: with micro-batches, only the views of one micro-batch are in memory as floats.
        augment: a function of one image that returns a view of the recipe's size, for example torchvision transforms:
            see `Augmentation`. It makes the views of training in place of the recipe, whose size remains that of views
            and of evaluation. Torch's, NumPy's and Python's global random generators are seeded for each call by
            (seed, epoch, index, view). It runs in the workers.
        augment_input: what ``augment`` takes: "pil", an RGB image, or "tensor", (3, H, W) uint8.
        start_method: how workers start. "fork", the default on Linux as in torch's DataLoader, takes milliseconds, and
            works in scripts without ``if __name__ == "__main__"`` and with classes of a notebook; but a copy of a
            process with threads can hang in rare cases. "forkserver", which the command line uses, is safe with
            threads; it imports the main script once more, in a second or two, and pickles the data set.
        predict: the images of `predict_dataloader`: "train" or "test".

    Raises:
        ValueError: the batch does not divide by the devices, is larger than the training images, or leaves one image
            on each device; or the data are not images.

    >>> data = ViewsDataModule(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), batch_size=16, recipe="simclr_cifar")
    >>> data.steps_per_epoch, data.load().test
    (4, None)
    """

    batch_is_global = True  # `SimCLR` reads batch_size as the images of all devices

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        recipe: ViewRecipe | str = "simclr",
        seed: int = 0,
        path: str | Path | None = None,
        num_workers: int = 0,
        resident: bool | Literal["auto"] = "auto",
        lazy: bool = False,
        augment: Callable[[Any], Any] | None = None,
        augment_input: InputKind = "pil",
        start_method: Literal["fork", "forkserver", "spawn"] | None = None,
        predict: Literal["train", "test"] = "train",
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.recipe = named_recipe(recipe) if isinstance(recipe, str) else recipe
        self.augmentation = None if augment is None else Augmentation(augment, self.recipe.size, augment_input)
        self.seed = seed
        self.path = None if path is None else Path(path)
        self.num_workers = num_workers
        self.resident = resident
        self.lazy = lazy
        self.start_method: str | None = start_method or fork()
        self.predict = predict
        self.limit: int | float = 1.0  # steps of an epoch at most, or the share of its steps
        self.any_images = False  # True: resume although the images differ from those of the checkpoint
        self.splits: Splits | None = None
        self._offset = 0  # images seen before the trainer's batch counter started
        self._restored = 0  # the checkpoint's batches, until the trainer has restored its counter
        self._images: dict[str, Tensor] = {}  # those of sets in memory, by part, on their device

    # -- called by Lightning --------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Load the images in one process of each node, so that a download happens once."""
        self.load()

    def setup(self, stage: str) -> None:
        """Load the images in this process and, for training, check the batch size."""
        self._restored = 0
        splits = self.load()
        if stage == "fit":
            check_batch(self.batch_size, images=splits.training_images, devices=distributed.world_size())

    def train_dataloader(self) -> Loader:
        """Return the batches of this rank: keys for sets in memory, two uint8 crops of each image for other sets."""
        return train_loader(self)

    def val_dataloader(self) -> Loader:
        """Return two fixed views of the held-out images, in global batches of which each rank has its part."""
        splits = self.load()
        return pair_loader(self, splits.train, splits.held_out, "train")

    def test_dataloader(self) -> Loader:
        """Return two fixed views of the test images, in global batches of which each rank has its part.

        Raises:
            ValueError: there are no test images.
        """
        test = self._test()
        return pair_loader(self, test, torch.arange(len(test)), "test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return one evaluation view of every image of the part ``predict``, each image on one rank.

        Raises:
            ValueError: ``predict`` is "test", and there are no test images.
        """
        images = self._test() if self.predict == "test" else self.load().train
        return center_loader(self, images, self.predict)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move only the bytes: the host plans the views with the indices, and so does not wait for the device."""
        if not _is_ours(batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        batch = as_tensors(batch)
        moved = {key: batch[key].to(device, non_blocking=True) for key in ("crops", "made", "centers") if key in batch}
        return {**batch, **moved, "device": device}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish the views on the device: {"x_a", "x_b": (n, 3, S, S) in [0, 1], "indices": (n,) int64 on the CPU}.

        "y", (n,) int64 on the device, are the classes, if the images have any. With ``lazy``, batches of training
        contain "views" instead of "x_a" and "x_b": a function that returns both for a slice of rows. Batches of
        `predict_dataloader` contain "x" (n, 3, S, S) instead.
        """
        if not _is_ours(batch):
            return batch
        indices = batch["indices"]
        labels = self._set(batch["part"]).labels
        rest = {"indices": indices} if labels is None else {"indices": indices, "y": labels[indices]}
        if "y" in rest and "device" in batch:
            rest["y"] = rest["y"].to(batch["device"], non_blocking=True)
        if batch["single"]:
            return {"x": self._centers(batch), **rest}
        make = partial(self._views, batch)
        if self.lazy and self.trainer is not None and self.trainer.training:
            return {"views": make, **rest}
        x_a, x_b = make(slice(None))
        return {"x_a": x_a, "x_b": x_b, **rest}

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the fingerprint of the data, for an exact resume."""
        return {
            "samples_seen": self.samples_seen,
            "steps": self._batches(),
            "fingerprint": self.load().fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved position.

        Raises:
            ValueError: the fingerprint of the images differs from the checkpoint's.
        """
        if state_dict["fingerprint"] != self.load().fingerprint and not self.any_images:
            raise ValueError(
                f"the images differ from those of the checkpoint (fingerprint "
                f"{self.load().fingerprint[:12]}, checkpoint {state_dict['fingerprint'][:12]}): "
                "files were added, removed or changed; restore them, start a new run with model.weights=, or add "
                "force=images to continue with the new images"
            )
        # The trainer restores its step later, and workers that fetch ahead need the position before that.
        self._restored = state_dict["steps"]
        self._offset = state_dict["samples_seen"] - state_dict["steps"] * self.batch_size

    # -- called by evaluation -------------------------------------------------------------------------------------

    def load(self) -> Splits:
        """Return the splits, made at the first call; their notes then hold `described` and `long_images` too."""
        if self.splits is None:
            found = splits_of(self.dataset, path=self.path)
            if self.augmentation is not None:
                self.augmentation.check(found.train.load(0))
            long = long_images(found.train, self.recipe, found.training_images)
            self.splits = replace(found, notes=(*described(found), *found.notes, *long))
        return self.splits

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: floor(training images / global batch), or those of ``limit``."""
        return position.limited(self.load().training_images // self.batch_size, self.limit)

    @property
    def samples_seen(self) -> int:
        """Images that training has seen since the start of the run, over all ranks."""
        return self.samples_at(self._batches())

    def samples_at(self, step: int) -> int:
        """Return the images that training has seen after ``step`` global batches of the run."""
        return self._offset + step * self.batch_size

    def eval_batches(
        self, images: ImageSet, indices: Tensor | None = None, *, batch_size: int = 256
    ) -> Iterator[Tensor]:
        """Yield evaluation views (b, 3, S, S) float in [0, 1] of the images at ``indices``, in that order."""
        chosen = torch.arange(len(images)) if indices is None else indices
        for part in chosen.split(batch_size):
            yield centred(images, part, size=self.recipe.size)

    def view_pairs(self, indices: Tensor, *, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return the views of training images in ``epoch``, as the network sees them: two (n, 3, S, S) tensors."""
        return view_pairs(
            self.load().train, indices, seed=self.seed, epoch=epoch, recipe=self.recipe, augmentation=self.augmentation
        )

    def is_resident(self, tensor: Tensor, device: torch.device) -> bool:
        """Return whether a set in memory (n, 3, H, W) is stored on ``device``, or would be now."""
        if "train" in self._images:
            return self._images["train"].device.type == device.type
        return self.resident is True or (self.resident == "auto" and fits(tensor, device))

    # -- parts ----------------------------------------------------------------------------------------------------

    def _batches(self) -> int:
        return max(self._restored, position.batches_done(self.trainer))

    def _test(self) -> ImageSet:
        test = self.load().test
        if test is None:
            raise ValueError("the data have no test images: pass (train, test) to ViewsDataModule")
        return test

    def _set(self, part: str) -> ImageSet:
        return self.load().train if part == "train" else self._test()

    def _views(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        """Both views of some rows of a batch."""
        if "made" in batch:
            return as_pair(batch["made"][rows])
        keys = {"seed": self.seed, "epoch": batch["epoch"], "indices": batch["indices"][rows], "recipe": self.recipe}
        if "crops" in batch:
            return finish_views(batch["crops"][rows], **keys)
        return make_views(self._picked(batch, keys["indices"]), **keys)

    def _centers(self, batch: Batch) -> Tensor:
        """The evaluation views of a batch."""
        if "centers" in batch:
            return floats(batch["centers"])
        return centre_view(self._picked(batch, batch["indices"]), size=self.recipe.size)

    def _picked(self, batch: Batch, indices: Tensor) -> Tensor:
        """Images of a set in memory, on the device of the batch."""
        part, device = batch["part"], batch.get("device", torch.device("cpu"))
        if part not in self._images:
            tensor = self._set(part).tensor
            assert tensor is not None
            placed = tensor.to(device) if self.is_resident(tensor, device) else tensor
            self._images = {**self._images, part: placed}  # a copy of this module has its own
        images = self._images[part]
        return onto(images[onto(indices, images.device)], device)


def _is_ours(batch: Any) -> bool:
    return isinstance(batch, dict) and "indices" in batch
