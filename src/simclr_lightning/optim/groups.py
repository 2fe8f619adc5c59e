"""The two parameter groups: what is decayed and adapted, and what is neither."""

import re
from typing import Any, Final

from torch import nn

_NORMALISATIONS: Final = (
    nn.modules.batchnorm._NormBase,  # every BatchNorm and InstanceNorm, SyncBatchNorm included
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
# other libraries' own: RmsNorm, FrozenBatchNorm2d, EvoNorm2d
_NORM_NAME: Final = re.compile(r"Norm(Act)?(\dd)?$")
_BIAS_NAME: Final = re.compile(r"(^|_)bias$|^bias_")


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the two parameter groups of SimCLR's optimisers.

    The first inherits the optimiser's weight decay; the second (parameters of normalisation layers, and
    biases) has ``weight_decay`` 0 and ``adapt`` False, so that LARS neither decays nor adapts it (paper
    section 2.2 and the authors' code). A shared parameter comes once, where it is met first; frozen ones are
    left out.

    Raises:
        ValueError: no parameter is left to train.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    seen: set[int] = set()
    for owner in module.modules():
        is_norm = isinstance(owner, _NORMALISATIONS) or _NORM_NAME.search(type(owner).__name__) is not None
        for name, param in owner.named_parameters(recurse=False):
            if id(param) in seen or not param.requires_grad:
                continue
            seen.add(id(param))
            (plain if is_norm or _BIAS_NAME.search(name) else decayed).append(param)
    if not seen:
        raise ValueError("no parameter requires a gradient; unfreeze a part of the model")
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0, "adapt": False}]
