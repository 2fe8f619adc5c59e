"""Images -> h with a frozen encoder.

Shapes: b = images in one batch, S = side in pixels, n = images in all, F = the encoder's feature_dim.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

# Features wait on the device and travel to the host together: the host waits for the device once in so
# many batches instead of after each.
_BATCHES_A_COPY = 32

_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


def extract(
    encoder: nn.Module,
    batches: Iterable[Tensor],
    *,
    device: torch.device | str | None = None,
    precision: str | None = None,
) -> Tensor:
    """Batches (b, 3, S, S) float in [0, 1] -> h (n, F) float32 on the CPU, in the order of the batches.

    The encoder is judged, never changed: it runs in evaluation mode and without gradients, so its
    BatchNorm statistics stay as they are to the last bit, and every submodule gets its own training flag
    back afterwards, also after an error.

    Args:
        encoder: takes a batch, returns (b, F). It is moved to `device` when it lies elsewhere.
        batches: any iterable; taken one at a time, so a generator keeps memory small.
        device: where to compute; None is where the encoder's parameters lie.
        precision: None or "32-true" computes in float32; "bf16-mixed" and "16-mixed" run the encoder under
            autocast (Lightning's names; a bare "bf16" or "16" is the same). h is float32 either way.

    Raises:
        ValueError: there are no batches, or the precision is unknown.
    """
    device = _device_of(encoder) if device is None else torch.device(device)
    encoder.to(device)
    parts: list[Tensor] = []
    waiting: list[Tensor] = []
    with evaluation_mode(encoder):
        for x_b3SS in batches:
            # Only the encoder is under inference_mode: what the iterable makes or keeps stays ordinary.
            with torch.inference_mode(), _autocast(device, precision):
                waiting.append(encoder(x_b3SS.to(device, non_blocking=True)))
            if len(waiting) == _BATCHES_A_COPY:
                parts.append(_to_host(waiting))
                waiting.clear()
    if waiting:
        parts.append(_to_host(waiting))
    if not parts:
        raise ValueError("there are no images to extract features from: the batches are empty")
    return torch.cat(parts)


def _to_host(h: list[Tensor]) -> Tensor:
    # Outside inference_mode, so that the result is an ordinary tensor that a probe may train on.
    return torch.cat([part.float() for part in h]).cpu()


def _device_of(encoder: nn.Module) -> torch.device:
    first = next(encoder.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule's own flag again (a frozen part may differ)."""
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
        raise ValueError(f"precision {precision!r} is not known for features: take 32-true, bf16-mixed or 16-mixed")
    return torch.autocast(device.type, dtype=dtype)
