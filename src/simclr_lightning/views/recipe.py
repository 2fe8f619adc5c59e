"""Define recipes for views: the probability and range of every operation.

The named recipes are the values of the key ``views``: the paper's recipes for ImageNet (appendix A) and CIFAR-10
(appendix B.9), crop and flip as in its linear evaluation, and the center crop without augmentation.
"""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

__all__ = ["ViewRecipe", "recipe"]


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """The settings of a view's operations, in the order in which they run. Probabilities are in [0, 1].

    Attributes:
        size: side S of the view in pixels, at least 1.
        crop: "random", or "centre": the evaluation crop, the same in both views.
        area: smallest and largest share of the image's area that a crop covers, in (0, 1].
        aspect: smallest and largest width / height of a crop; its logarithm is uniform.
        interpolation: filter of the antialiased resize, "bicubic" (a = -0.5) or "bilinear".
        flip: probability of a left-right flip.
        jitter: probability of color jitter: brightness, contrast, saturation and hue change in a random order.
        strength: s, 0 to 2.5; the jitter changes brightness, contrast and saturation by up to 0.8 s, and hue by up to
            0.2 s turns.
        brightness: "multiply" by U(max(0, 1 - 0.8 s), 1 + 0.8 s), or "add" U(-0.8 s, 0.8 s).
        grey: probability of grayscale, after the jitter.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur in pixels.
        blur_kernel: side of the blur's kernel as a share of `size`, in [0, 1]; the side is made odd (23 at 224).
        solarise: probability of solarization, which inverts values of 0.5 and above.

    Raises:
        ValueError: a field is out of its range; the message names the field.

    >>> ViewRecipe(size=32, blur=0.0).strength
    1.0
    """

    size: int = 224
    crop: Literal["random", "centre"] = "random"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8
    strength: float = 1.0
    brightness: Literal["multiply", "add"] = "multiply"
    grey: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: float = 0.1
    solarise: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"views.size must be a whole number of pixels of at least 1, not {self.size!r}")
        _one_of(self, "crop", ("random", "centre"))
        _one_of(self, "interpolation", ("bicubic", "bilinear"))
        _one_of(self, "brightness", ("multiply", "add"))
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            _number(self, name, 0.0, 1.0)
        _number(self, "strength", 0.0, 2.5)
        _number(self, "blur_kernel", 0.0, 1.0)
        _pair(self, "area", 1.0)
        _pair(self, "aspect", float("inf"))
        _pair(self, "blur_sigma", float("inf"))

    @property
    def blur_radius(self) -> int:
        """Radius of the blur in pixels: its kernel has 2 * radius + 1 taps."""
        return int(self.blur_kernel * self.size) // 2


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _one_of(owner: ViewRecipe, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if value not in allowed:
        raise ValueError(f"views.{name} must be one of {', '.join(allowed)}, not {value!r}")


def _number(owner: ViewRecipe, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if not _is_number(value) or not low <= value <= high:
        raise ValueError(f"views.{name} must be a number from {low:g} to {high:g}, not {value!r}")


def _pair(owner: ViewRecipe, name: str, high: float) -> None:
    """Check 0 < low <= high <= limit and store the pair as a tuple (a configuration file holds a list)."""
    value = getattr(owner, name)
    try:
        pair = tuple(value)
    except TypeError:
        pair = ()
    good = len(pair) == 2 and all(_is_number(v) for v in pair) and 0 < pair[0] <= pair[1] <= high
    if not good:
        limit = f" <= {high:g}" if isfinite(high) else ""
        raise ValueError(f"views.{name} must be two numbers with 0 < low <= high{limit}, not {value!r}")
    object.__setattr__(owner, name, (float(pair[0]), float(pair[1])))


_SIMCLR = ViewRecipe()
_CROP_FLIP = ViewRecipe(jitter=0.0, grey=0.0, blur=0.0)
_NAMED = {
    "simclr": _SIMCLR,
    "simclr_cifar": replace(_SIMCLR, size=32, strength=0.5, blur=0.0),
    "crop_flip": _CROP_FLIP,
    "none": replace(_CROP_FLIP, crop="centre", flip=0.0),
}


def recipe(name: str) -> ViewRecipe:
    """Return the recipe with this name: simclr (S = 224), simclr_cifar (S = 32), crop_flip or none.

    Raises:
        ValueError: no recipe has this name; the message lists the names.

    >>> recipe("simclr_cifar").size
    32
    """
    if name not in _NAMED:
        raise ValueError(f"views has no recipe {name!r}; choose one of {', '.join(_NAMED)}")
    return _NAMED[name]
