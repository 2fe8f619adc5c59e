"""The LightningDataModule: paired views of the images of any source, the same for any number of workers and devices.

The order of an epoch is a permutation keyed by (seed, epoch). A global batch is a slice of it, and every rank has a
contiguous part of the batch. The position is the number of images seen, so a resumed run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from simclr_lightning import distributed, machine
from simclr_lightning.data.aspects import long_images
from simclr_lightning.data.describe import described
from simclr_lightning.data.images import ImageSet, Splits
from simclr_lightning.data.loading import Batch, as_tensors, train_loader
from simclr_lightning.global_batch import check_batch
from simclr_lightning.views import ViewRecipe, centre_view, crop_views, finish_views, make_views, recipe as named_recipe
from simclr_lightning.views.kernels import onto


class ViewsDataModule(L.LightningDataModule):
    """Paired views of an image set, in global batches.

    Args:
        dataset: a function that returns the `Splits` in ``path``.
        batch_size: the global batch: images over all devices and nodes in one step.
        recipe: a `ViewRecipe` or the name of one.
        seed: the seed of the order and of every random number of a view.
        path: the place of the images; None for sources that need none.
        num_workers: processes that decode; sets in memory use none.
        resident: whether a set in memory is stored on the accelerator: True, False, or "auto" (if it takes at most a
            tenth of the device's free memory).
        lazy: pass the network a function that makes the views of some images, instead of the views of the whole
            batch: with micro-batches, only the views of one micro-batch are in memory as floats.

    Raises:
        ValueError: the batch does not divide by the devices, is larger than the training images, or leaves one image
            on each device.
    """

    def __init__(
        self,
        dataset: Callable[[Path | None], Splits],
        *,
        batch_size: int,
        recipe: ViewRecipe | str,
        seed: int = 0,
        path: str | Path | None = None,
        num_workers: int = 0,
        resident: bool | Literal["auto"] = "auto",
        lazy: bool = False,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.recipe = named_recipe(recipe) if isinstance(recipe, str) else recipe
        self.seed = seed
        self.path = None if path is None else Path(path)
        self.num_workers = num_workers
        self.resident = resident
        self.lazy = lazy
        self.limit: int | float = 1.0  # steps of an epoch at most, or the share of its steps
        self.any_images = False  # True: resume although the images differ from those of the checkpoint
        self.splits: Splits | None = None
        self._offset = 0  # images seen before the trainer's step counter started
        self._restored = 0  # the checkpoint's step, until the trainer has restored its counter
        self._images: Tensor | None = None

    # -- called by Lightning --------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Load the images in one process of each node, so that a download happens once."""
        self.load()

    def setup(self, stage: str) -> None:
        """Load the images in this process and check the batch size."""
        self._restored = 0
        splits = self.load()
        check_batch(self.batch_size, images=splits.training_images, devices=distributed.world_size())

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of this rank: keys for sets in memory, two uint8 crops of each image for other sets."""
        return train_loader(self)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move only the bytes: the host plans the views with the indices, and so does not wait for the device."""
        if not _is_ours(batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        batch = as_tensors(batch)
        moved = {"crops": batch["crops"].to(device, non_blocking=True)} if "crops" in batch else {}
        return {**batch, **moved, "device": device}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finish the views on the device: {"x_a", "x_b": (n, 3, S, S) in [0, 1], "indices": (n,) int64}.

        With ``lazy``, "views" instead of "x_a" and "x_b": a function that returns both for a slice of rows.
        """
        if not _is_ours(batch):
            return batch
        indices = batch["indices"]
        make = partial(self._views, batch)
        if self.lazy:
            return {"views": make, "indices": indices}
        x_a, x_b = make(slice(None))
        return {"x_a": x_a, "x_b": x_b, "indices": indices}

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the fingerprint of the data, for an exact resume."""
        return {
            "samples_seen": self.samples_seen,
            "steps": self._steps(),
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
            found = self.dataset(self.path)
            long = long_images(found.train, self.recipe, found.training_images)
            self.splits = replace(found, notes=(*described(found), *found.notes, *long))
        return self.splits

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: floor(training images / global batch), or those of ``limit``."""
        steps = self.load().training_images // self.batch_size
        limited = self.limit if isinstance(self.limit, int) else int(steps * self.limit)
        return min(steps, max(1, limited))

    @property
    def samples_seen(self) -> int:
        """Images that the optimizer has seen since the start of the run, over all ranks."""
        return self.samples_at(self._steps())

    def samples_at(self, step: int) -> int:
        """Return the images that the optimizer has seen after ``step`` optimizer steps of the run."""
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
        train = self.load().train
        keys = {"seed": self.seed, "epoch": epoch}
        if train.tensor is not None:
            return make_views(train.tensor[indices], indices=indices, recipe=self.recipe, **keys)
        crops = [crop_views(train.load(int(i)), index=int(i), recipe=self.recipe, **keys) for i in indices]
        return finish_views(torch.stack(crops), indices=indices, recipe=self.recipe, **keys)

    def is_resident(self, tensor: Tensor, device: torch.device) -> bool:
        """Return whether a set in memory (n, 3, H, W) is stored on ``device``, or would be now."""
        if self._images is not None:
            return self._images.device.type == device.type
        return self.resident is True or (self.resident == "auto" and _fits(tensor, device))

    # -- parts ----------------------------------------------------------------------------------------------------

    def _steps(self) -> int:
        return max(self._restored, int(self.trainer.global_step) if self.trainer is not None else 0)

    def _views(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        """Both views of some rows of a batch."""
        keys = {"seed": self.seed, "epoch": batch["epoch"], "indices": batch["indices"][rows], "recipe": self.recipe}
        if "crops" in batch:
            return finish_views(batch["crops"][rows], **keys)
        device = batch.get("device", torch.device("cpu"))
        images = self._resident_images(device)
        picked = onto(images[onto(keys["indices"], images.device)], device)
        return make_views(picked, **keys)

    def _resident_images(self, device: torch.device) -> Tensor:
        tensor = self.load().train.tensor
        assert tensor is not None
        if self._images is None:
            self._images = tensor.to(device) if self.is_resident(tensor, device) else tensor
        return self._images


def centred(images: ImageSet, indices: Tensor, *, size: int) -> Tensor:
    """Return evaluation views (b, 3, size, size) float in [0, 1] of the images at ``indices`` (b,)."""
    if images.tensor is not None:
        return centre_view(images.tensor[indices], size=size)
    with ThreadPoolExecutor(machine.cores()) as threads:  # decoding releases Python's lock
        views = threads.map(lambda i: centre_view(images.load(i)[None], size=size), indices.tolist())
        return torch.cat(list(views))


def _is_ours(batch: Any) -> bool:
    return isinstance(batch, dict) and "indices" in batch


def _fits(tensor: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return device.type == "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    return tensor.numel() * tensor.element_size() <= free / 10
