"""Views are a function of (seed, epoch, index, view): not of batch, device, threads or worker."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from made_views import KEYS, LEVEL, photographs, pil_crop
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simclr_lightning.views import (
    ViewRecipe,
    centre_view,
    crop_views,
    finish_views,
    kernels,
    make_views,
    recipe,
    resize,
)
from simclr_lightning.views.sampling import sample_crops

RECIPES = {
    "cifar": recipe("simclr_cifar"),
    "cifar with everything": replace(recipe("simclr_cifar"), blur=0.5, solarise=0.3, brightness="add", strength=1.0),
    "simclr at 64": replace(recipe("simclr"), size=64),
    "crop_flip at 20": replace(recipe("crop_flip"), size=20),
    "none at 40": replace(recipe("none"), size=40),
}


@pytest.mark.parametrize("chosen", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize(("height", "width"), [(32, 32), (61, 47)])
def test_views_do_not_depend_on_their_batch(chosen: ViewRecipe, height: int, width: int) -> None:
    n = 280 if height == 32 and chosen.size == 32 else 40  # the first has rows enough to group by brightness
    images = photographs(n, height, width)
    indices = torch.randperm(10**6, generator=torch.Generator().manual_seed(5))[:n]
    whole = make_views(images, indices=indices, recipe=chosen, **KEYS)
    assert whole[0].shape == whole[1].shape == (n, 3, chosen.size, chosen.size)
    cut = torch.stack(
        [
            crop_views(image, index=int(index), recipe=chosen, **KEYS)
            for image, index in zip(images, indices, strict=True)
        ]
    )
    assert cut.dtype == torch.uint8
    apart = finish_views(cut, indices=indices, recipe=chosen, **KEYS)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(6))
    batches = [order[:1], order[1:4], order[4:37], order[37:]]
    for view in range(2):
        assert torch.equal(whole[view], apart[view])
        for batch in batches:
            part = make_views(images[batch], indices=indices[batch], recipe=chosen, **KEYS)
            assert torch.equal(part[view], whole[view][batch])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        again = make_views(images, indices=indices, recipe=chosen, **KEYS)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again[0], whole[0])
    assert torch.equal(again[1], whole[1])


class _NoFloat64(TorchDispatchMode):
    """Raise TypeError for float64 on the device "meta", as a device without float64 would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, Tensor) and x.device.type == "meta" and x.dtype == torch.float64:
                raise TypeError(f"float64 in {func}")
        return out


@pytest.mark.parametrize(("side", "size"), [(32, 32), (64, 40)])
def test_a_device_without_float64_makes_the_same_views(side: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 40
    images, indices = photographs(n, side, side), torch.arange(n)
    chosen = replace(recipe("simclr"), size=size, solarise=0.2)
    crops = sample_crops(side, side, indices=indices, recipe=chosen, **KEYS)
    boxes = crops.box.unflatten(0, (2, n)), crops.flip.unflatten(0, (2, n))
    cut, cut_without = torch.empty(2, n, 2, 3, size, size, dtype=torch.uint8)
    resize._resize_batch(images, *boxes, "bicubic", cut)
    expected = finish_views(cut, indices=indices, recipe=chosen, **KEYS)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # autocast does not support "meta"
    with _NoFloat64(), pytest.raises(TypeError, match="float64"):
        make_views(images.to("meta"), indices=indices, recipe=chosen, **KEYS)
    monkeypatch.setattr(kernels, "has_float64", lambda device: False)
    monkeypatch.setattr(resize, "has_float64", lambda device: False)
    with _NoFloat64():
        assert make_views(images.to("meta"), indices=indices, recipe=chosen, **KEYS)[0].shape == (n, 3, size, size)
    resize._resize_batch(images, *boxes, "bicubic", cut_without)
    assert torch.equal(cut_without, cut)
    for ours, theirs in zip(finish_views(cut, indices=indices, recipe=chosen, **KEYS), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_views_of_224_do_not_depend_on_their_batch_or_threads() -> None:
    crops = photographs(10, 224, 224).unflatten(0, (5, 2))
    indices = torch.arange(100, 105)
    whole = finish_views(crops, indices=indices, recipe="simclr", **KEYS)
    threads = torch.get_num_threads()
    for at, count in ((0, 3), (2, 2), (4, 1)):
        torch.set_num_threads(count)
        part = slice(at, at + 1)
        alone = finish_views(crops[part], indices=indices[part], recipe="simclr", **KEYS)
        torch.set_num_threads(threads)
        assert torch.equal(alone[0], whole[0][part])
        assert torch.equal(alone[1], whole[1][part])


def test_seed_epoch_index_and_view_each_change_a_view() -> None:
    images = photographs(1, 32, 32).expand(20, -1, -1, -1)
    indices = torch.arange(20)

    def views(seed: int = 1, epoch: int = 1, at: Tensor = indices) -> Tensor:
        return torch.cat(make_views(images, seed=seed, epoch=epoch, indices=at, recipe="simclr_cifar"))

    everything = torch.cat([views(), views(seed=2), views(epoch=2), views(at=indices + 20)])
    assert len({x.numpy().tobytes() for x in everything}) == len(everything)
    assert torch.equal(views(), views())


def test_the_global_generator_and_the_images_are_left_alone() -> None:
    images = photographs(6, 32, 32)
    kept = images.clone()
    before = torch.get_rng_state()
    make_views(images, indices=torch.arange(6), recipe=RECIPES["cifar with everything"], **KEYS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)


class _Crops(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return crop_views(self.images[index], index=index, recipe=RECIPES["simclr at 64"], **KEYS)


def test_workers_cut_the_same_crops() -> None:
    images = photographs(12, 90, 100)
    loaders = [torch.utils.data.DataLoader(_Crops(images), batch_size=4, num_workers=w) for w in (0, 1, 2)]
    batches = [torch.cat(list(loader)) for loader in loaders]
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


@pytest.mark.parametrize(
    ("height", "width", "size", "side"),
    [(256, 320, 224, 224), (375, 300, 224, 262), (64, 64, 32, 56), (200, 40, 35, 35)],
)
def test_centre_view_is_pillows_resize_of_the_center(height: int, width: int, size: int, side: int) -> None:
    images = photographs(3, height, width)
    got = centre_view(images, size=size)
    assert got.shape == (3, 3, size, size)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    top, left = (height - side) // 2, (width - side) // 2
    for i in range(3):
        want = pil_crop(images[i], [top, left, side, side], False, size).float() / 255
        assert (got[i] - want).abs().max().item() <= 1.001 * LEVEL


def test_centre_view_keeps_a_small_image_whole() -> None:
    images = photographs(4, 32, 32)
    assert torch.equal(centre_view(images, size=32), images / 255)
    small = photographs(2, 28, 28)
    want = torch.stack([pil_crop(x, [0, 0, 28, 28], False, 32) for x in small]) / 255
    assert (centre_view(small, size=32) - want).abs().max().item() <= 1.001 * LEVEL


def test_none_gives_the_centre_view_twice() -> None:
    images = photographs(3, 100, 80)
    x_a, x_b = make_views(images, indices=torch.arange(3), recipe="none", **KEYS)
    assert torch.equal(x_a, x_b)
    assert torch.equal(x_a, centre_view(images, size=224))


def test_an_empty_batch_gives_empty_views() -> None:
    images = torch.empty((0, 3, 32, 32), dtype=torch.uint8)
    x_a, x_b = make_views(images, indices=torch.arange(0), recipe="simclr_cifar", **KEYS)
    assert x_a.shape == x_b.shape == (0, 3, 32, 32)


def test_wrong_inputs_are_refused() -> None:
    images = photographs(2, 32, 32)
    two = torch.arange(2)
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\) uint8"):
        make_views(images.float(), indices=two, recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\) uint8"):
        crop_views(images, index=0, recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match="crops must be"):
        finish_views(images, indices=two, recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match="one number per image"):
        make_views(images, indices=torch.arange(3), recipe="simclr", **KEYS)
    with pytest.raises(ValueError, match="one number per image"):
        finish_views(images[:, None].expand(-1, 2, -1, -1, -1), indices=torch.arange(3), recipe="simclr_cifar", **KEYS)
    with pytest.raises(ValueError, match="no recipe 'simcrl'"):
        make_views(images, indices=two, recipe="simcrl", **KEYS)
