"""Check the packages that the user trusts (``trusted=[PACKAGE]``)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from typing import Final

from simclr_lightning.app.errors import mistake

_NOT_YOURS: Final = frozenset(
    {
        *("hydra", "hydra_plugins", "omegaconf", "optuna", "simclr_lightning", "wandb", "yaml", "requests"),
        *(
            "lightning",
            "lightning_fabric",
            "pytorch_lightning",
            "torch",
            "torchvision",
            "timm",
            "safetensors",
        ),
        *("matplotlib", "numpy", "pandas", "PIL", "pyarrow", "scipy", "skimage", "sklearn", "tensorboard", "mlflow"),
        *("comet_ml", "pip", "pkg_resources", "rich", "safetensors", "setuptools"),
    }
)


def check_trusted(trusted: Sequence[str]) -> None:
    """Refuse ``trusted`` packages that are not the user's.

    Raises:
        UserError: a package is part of Python, is this package or one of its dependencies, or does not exist.
    """
    for name in trusted:
        top = str(name).partition(".")[0]
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise mistake(f"trusted={name}: this is not a package name; write trusted=[PACKAGE]")
        if top in sys.stdlib_module_names or top in _NOT_YOURS or top == "builtins":
            raise mistake(f"trusted={name}: {top} is not your own package; name the package that contains your code")
        if importlib.util.find_spec(top) is None:
            raise mistake(
                f"trusted={name}: there is no package {top}; install it, or start the program in the folder that "
                "contains it"
            )
