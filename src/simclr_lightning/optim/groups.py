"""Split parameters into two groups: with and without weight decay and LARS adaptation."""

import re
from typing import Any, Final

from torch import nn

_NORMALIZATIONS: Final = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm, SyncBatchNorm included
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
# class names of other libraries, such as RmsNorm, FrozenBatchNorm2d and BatchNormAct2d
_NORM_NAME: Final = re.compile(r"Norm(Act)?(\dd)?$")
_BIAS_NAME: Final = re.compile(r"(^|_)bias$|^bias_")


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the two parameter groups of a module for any torch optimizer.

    The first group has the weight decay of the optimizer. The second group holds biases and the parameters of
    normalization layers. Its ``weight_decay`` is 0 and its ``adapt`` False, so LARS neither decays nor adapts them. A
    shared parameter is listed once, at its first owner; frozen parameters are left out. Source: paper section 2.2 and
    the authors' code.

    Raises:
        ValueError: no parameter requires a gradient.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> [len(group["params"]) for group in parameter_groups(model)]
    [1, 3]
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[int] = set()
    for owner in module.modules():
        is_norm = isinstance(owner, _NORMALIZATIONS) or _NORM_NAME.search(type(owner).__name__) is not None
        for name, param in owner.named_parameters(recurse=False):
            if id(param) in seen or not param.requires_grad:
                continue
            seen.add(id(param))
            (plain if is_norm or _BIAS_NAME.search(name) else decayed).append(param)
    if not seen:
        raise ValueError("no parameter requires a gradient; unfreeze some of them with requires_grad_(True)")
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0, "adapt": False}]
