"""Check that a module can be trained as an encoder, find the width of its features, and pool feature maps.

Every pass here is dry: it leaves buffers, gradients, training mode and random generators as they were.

Legend: B images, C channels, S side in pixels, F width of h, h x w side lengths of a feature map.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from simclr_lightning.text import first_line

_IMAGES: Final = 4  # of the dry pass


def pooled(h: Tensor) -> Tensor:
    """Return features h (B, F) as they are, and feature maps (B, F, h, w) averaged over their positions to (B, F).

    Raises:
        ValueError: h has another number of dimensions.

    >>> pooled(torch.tensor([[[[1.0, 3.0]], [[2.0, 6.0]]]]))
    tensor([[2., 4.]])
    """
    if h.ndim == 2:
        return h
    if h.ndim == 4:
        return h.mean((2, 3))
    raise ValueError(_shape_fault(h))


def feature_dim(encoder: nn.Module, *, size: int = 32, channels: int = 3) -> int:
    """Return F, the width of the encoder's features: its attribute ``feature_dim``, else that of a dry pass.

    The dry pass has two images and runs in evaluation mode; the encoder does not change, except that lazy layers get
    their weights.

    Args:
        encoder: maps images (B, C, S, S) to h (B, F) or (B, F, h, w).
        size: S, for the dry pass.
        channels: C, for the dry pass.

    Raises:
        ValueError: the encoder fails, or returns something else.

    >>> feature_dim(nn.Conv2d(3, 8, 3))
    8
    """
    given = getattr(encoder, "feature_dim", None)
    if isinstance(given, int):
        return given
    like = next(encoder.parameters(), torch.empty(0))
    x_BCSS = torch.full((2, channels, size, size), 0.5, device=like.device, dtype=like.dtype)
    with unchanged(encoder, x_BCSS.device), torch.no_grad():
        encoder.eval()
        return _features(encoder, x_BCSS).shape[1]


def check_encoder(encoder: nn.Module, images: Tensor) -> int:
    """Return F after a dry pass of a few images, or raise an error if the module cannot be trained as an encoder.

    Random generators, BatchNorm's statistics, gradients and the training mode are the same afterwards.

    Args:
        encoder: maps images (B, C, S, S) to h (B, F) or (B, F, h, w). A compiled encoder is checked without its
            compiled code.
        images: (B, C, S, S), floats in [0, 1], as in training; at most 4 of them are used.

    Raises:
        ValueError: the encoder has no parameters to train, has them in another dtype than the images, fails, returns
            no Tensor of those shapes, returns NaN or infinity, returns another F for another batch size or than its
            attribute ``feature_dim``, or its h does not depend on its parameters.

    >>> check_encoder(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.rand(4, 3, 8, 8))
    8
    """
    encoder = getattr(encoder, "_orig_mod", encoder)
    params = [p for p in encoder.parameters() if p.requires_grad]
    if not params:
        raise ValueError("the encoder has no parameters to train: each needs requires_grad=True")
    _check_dtype(params, images.dtype)
    x_BCSS = images[:_IMAGES].to(params[0].device)
    if len(x_BCSS) < 2:  # BatchNorm needs two values per channel
        x_BCSS = torch.cat((x_BCSS, x_BCSS))
    with unchanged(encoder, x_BCSS.device):
        with torch.enable_grad():
            h = _features(encoder, x_BCSS)
        encoder.eval()
        with torch.no_grad():
            other = _features(encoder, x_BCSS[:1])
    width = h.shape[1]
    _check_width(width, other.shape[1], getattr(encoder, "feature_dim", None))
    if not h.isfinite().all():
        raise ValueError(f"the encoder returned NaN or infinity for {len(h)} images with values in [0, 1]")
    if not _reaches(h, {id(p) for p in encoder.parameters() if p.requires_grad}):
        raise ValueError("no gradient reaches the encoder's parameters; remove detach() or no_grad() from its forward")
    return width


def _check_dtype(params: list[nn.Parameter], dtype: torch.dtype) -> None:
    found = next((p.dtype for p in params if p.is_floating_point() and p.dtype != dtype), None)
    if found is not None:
        name = str(found).removeprefix("torch.")
        raise ValueError(
            f"the encoder has {name} parameters and the images are {str(dtype).removeprefix('torch.')}; call "
            "encoder.float(), and for half precision set the trainer's precision to bf16-mixed"
        )


def _check_width(width: int, other: int, named: Any) -> None:
    if other != width:
        raise ValueError(
            f"the encoder returned {width} features for a batch and {other} for one image; "
            "the number of features must not depend on the batch or on the training mode"
        )
    if isinstance(named, int) and named != width:
        raise ValueError(f"the encoder returned {width} features, but its feature_dim is {named}; correct feature_dim")


def _features(encoder: nn.Module, x_BCSS: Tensor) -> Tensor:
    """Return the encoder's output, as it is, if its type and shape are those of features."""
    try:
        h = encoder(x_BCSS)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a module of the user may raise anything
        raise ValueError(
            f"the encoder fails for images of shape {tuple(x_BCSS.shape)}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(h, Tensor):
        raise ValueError(
            f"the encoder returned {_named(h)}; return one Tensor from its forward, (B, F) or (B, F, h, w)"
        )
    if h.ndim not in (2, 4) or len(h) != len(x_BCSS) or not h.numel():
        raise ValueError(f"{_shape_fault(h)}; B was {len(x_BCSS)}")
    if not h.is_floating_point():
        raise ValueError(f"the encoder returned {h.dtype}; return floats")
    return h


def _named(found: Any) -> str:
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)}"
    keys = f" with the keys {', '.join(map(str, found))}" if isinstance(found, dict) else ""
    return f"an object of type {type(found).__name__}{keys}"


def _shape_fault(h: Tensor) -> str:
    tokens = "; take the class token or the mean over tokens" if h.ndim == 3 else ""
    return f"the encoder returned the shape {tuple(h.shape)} and must return (B, F) or (B, F, h, w){tokens}"


def _reaches(h: Tensor, params: set[int]) -> bool:
    """Return whether the graph of h leads to one of the parameters, given by id; no backward pass is run."""
    nodes: list[Any] = [h.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if id(getattr(node, "variable", None)) in params:
            return True
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
    return False


@contextmanager
def unchanged(encoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the buffers, the training mode and the random generators when the block ends.

    Inside, synchronized BatchNorm is in evaluation mode, in which it does not communicate.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None or is_lazy(buffer) else buffer.detach().clone())
        for module in encoder.modules()
        for name, buffer in module._buffers.items()
    ]
    with _same_random_numbers(device):
        try:
            for module in encoder.modules():
                if isinstance(module, nn.SyncBatchNorm):
                    module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, value in buffers:
                if buffer is not None and value is not None:
                    with torch.no_grad():
                        buffer.copy_(value)
                if buffer is None or value is not None:
                    module._buffers[name] = buffer


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Restore the states of the random generators of Python, of the CPU and of the device when the block ends."""
    python, cpu = random.getstate(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        if mps is not None:
            torch.mps.set_rng_state(mps)
