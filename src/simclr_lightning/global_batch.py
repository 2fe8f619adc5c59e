"""Check the arithmetic of the global batch: images over all devices and nodes in one optimizer step."""

from __future__ import annotations


def check_batch(batch_size: int, *, images: int, devices: int) -> None:
    """Refuse a global batch that the devices or the images cannot take.

    Raises:
        ValueError: with the arithmetic, naming ``data.batch_size``.
    """
    if batch_size % devices:
        lower = batch_size - batch_size % devices
        near = dict.fromkeys(max(size, 2 * devices) for size in (lower, lower + devices))
        raise ValueError(
            f"data.batch_size={batch_size} does not divide by {devices} devices "
            f"({batch_size} = {devices} * {batch_size // devices} + {batch_size % devices}); "
            f"use {' or '.join(map(str, near))}"
        )
    if batch_size > images:
        most = images // devices * devices
        fix = f"use at most {most}" if most >= 2 * devices else f"use at most {images // 2} devices"
        raise ValueError(
            f"data.batch_size={batch_size} is larger than the {images} training images: no step would be made; {fix}"
        )
    if batch_size // devices < 2:
        raise ValueError(
            f"data.batch_size={batch_size} leaves {batch_size // devices} image on each of {devices} devices; "
            f"BatchNorm needs at least 2: use {2 * devices} or more"
        )


def check_micro_batch(micro_batch_size: int, *, batch_size: int, devices: int = 1) -> None:
    """Check that micro-batches divide the global batch and can be split evenly over the devices.

    Args:
        micro_batch_size: images in one micro-batch, over all devices.
        batch_size: images in the global batch.
        devices: the number of devices over all nodes.

    Raises:
        ValueError: they do not, or a device would get fewer than 2 images.

    >>> check_micro_batch(64, batch_size=256, devices=8)
    >>> check_micro_batch(512, batch_size=256)
    Traceback (most recent call last):
    ValueError: micro_batch_size=512 is larger than data.batch_size=256; use 256, or null
    """
    name = f"micro_batch_size={micro_batch_size}"
    if micro_batch_size > batch_size:
        raise ValueError(f"{name} is larger than data.batch_size={batch_size}; use {batch_size}, or null")
    sizes = [size for size in range(2 * devices, batch_size + 1, devices) if batch_size % size == 0] or [batch_size]
    fix = f"use {max((size for size in sizes if size <= micro_batch_size), default=sizes[0])}, for example"
    if batch_size % micro_batch_size:
        raise ValueError(
            f"{name} does not divide data.batch_size={batch_size} ({batch_size} = {batch_size // micro_batch_size} * "
            f"{micro_batch_size} + {batch_size % micro_batch_size}); {fix}"
        )
    if micro_batch_size % devices:
        raise ValueError(
            f"{name} is not divisible by {devices} devices: it counts the images on all devices, as data.batch_size "
            f"does; {fix}"
        )
    if micro_batch_size // devices < 2:
        raise ValueError(
            f"{name} leaves {micro_batch_size // devices} image on each of {devices} devices, and BatchNorm needs at "
            f"least 2; {fix}"
        )


def check_same_batch(given: int, found: int, *, devices: int) -> None:
    """Check that the module and the loader mean the same global batch.

    Raises:
        ValueError: they do not.

    >>> check_same_batch(256, 512, devices=2)
    Traceback (most recent call last):
    ValueError: global_batch_size=256, but the loader makes 512 images a step (256 on each of 2 devices); leave it out
    """
    if given != found:
        each = f" ({found // devices} on each of {devices} devices)" if devices > 1 else ""
        raise ValueError(f"global_batch_size={given}, but the loader makes {found} images a step{each}; leave it out")
