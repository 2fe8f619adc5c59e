"""Compute the features h of images with a frozen encoder.

Shapes: b = images in one batch, S = side of an image in pixels, n = images of all batches, F = encoder.feature_dim.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from simclr_lightning.stopping import check

# Features are copied from the device to the CPU once in this many batches, because each copy waits for the device.
_BATCHES_PER_COPY = 32

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


def extract(
    encoder: nn.Module,
    batches: Iterable[Tensor],
    *,
    device: torch.device | str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Return h of all images, (n, F) float32 on the CPU, in the order of the batches.

    The encoder runs in evaluation mode and without gradients, so its weights and BatchNorm statistics do not change.
    Afterwards, also after an error, every submodule has the training flag that it had before.

    Args:
        encoder: maps a batch to (b, F). It is moved to `device`.
        batches: float images (b, 3, S, S) in [0, 1]. Batches are read one at a time, so a generator keeps memory small.
        device: where to compute; None: the device of the encoder's parameters.
        precision: Lightning's name. None or "32-true" computes in float32; "bf16-mixed" and "16-mixed" (or "bf16" and
            "16") run the encoder under autocast. The returned h is float32 in every case.

    Raises:
        ValueError: `batches` is empty, or `precision` is unknown.

    Example:
        >>> extract(nn.Flatten(), [torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)]).shape
        torch.Size([3, 48])
    """
    device = _device_of(encoder) if device is None else torch.device(device)
    encoder.to(device)
    parts: list[Tensor] = []
    waiting: list[Tensor] = []
    with evaluation_mode(encoder):
        for x_b3SS in batches:
            check()
            # Only the encoder runs under inference_mode, so tensors that the iterable makes stay ordinary tensors.
            with torch.inference_mode(), _autocast(device, precision):
                waiting.append(encoder(x_b3SS.to(device, non_blocking=True)))
            if len(waiting) == _BATCHES_PER_COPY:
                parts.append(_to_host(waiting))
                waiting.clear()
    if waiting:
        parts.append(_to_host(waiting))
    if not parts:
        raise ValueError("there are no images to extract features from: the batches are empty")
    return torch.cat(parts)


def _to_host(h: list[Tensor]) -> Tensor:
    # Runs outside inference_mode, so that the result is an ordinary tensor, which a probe can train on.
    return torch.cat([part.float() for part in h]).cpu()


def _device_of(encoder: nn.Module) -> torch.device:
    first = next(encoder.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; on exit, restore the training flag of each submodule."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def _autocast(device: torch.device, precision: str | None) -> AbstractContextManager[object]:
    if precision is None or precision in ("32", "32-true"):
        return nullcontext()
    dtype = _AUTOCAST_DTYPES.get(precision.removesuffix("-mixed"))
    if dtype is None:
        raise ValueError(f"precision {precision!r} is unknown for features: choose 32-true, bf16-mixed or 16-mixed")
    return torch.autocast(device.type, dtype=dtype)
