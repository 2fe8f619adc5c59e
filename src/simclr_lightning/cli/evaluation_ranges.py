"""The type and range of every key of conf/evaluate.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Final

from simclr_lightning.cli.errors import mistake
from simclr_lightning.cli.ranges import (
    ANY_SEED,
    NAMES,
    PATH,
    POSITIVE,
    RULES,
    SWITCH,
    Rule,
    list_of,
    number,
    one_of,
    optional,
    whole,
)

PROTOCOLS: Final = ("knn", "lbfgs", "linear", "semi", "finetune")
DATA_SETS: Final = ("array", "cifar10", "cifar100", "fashion_mnist", "folder", "imagenet", "packed", "photos", "stl10")
_RATE_LIST: Final = list_of("of such", POSITIVE)
_RATES: Final = Rule(lambda v: POSITIVE.accepts(v) or _RATE_LIST.accepts(v), f"{POSITIVE.says}, or {_RATE_LIST.says}")
_SHARES: Final = list_of("of shares above 0 and below 1", number("", lambda v: 0 < v < 1))
_SGD: Final = {"batch_size": whole(2), "epochs": whole(1), "lr": _RATES}


def share_name(fraction: float) -> str:
    """A share of the labels in keys, files and titles: per cent, in six digits."""
    return f"{100 * fraction:g}"


EVALUATION_RULES: Final[dict[str, Rule]] = {
    **{key: rule for key, rule in RULES.items() if key.startswith(("data.", "views.")) or key in ("seed", "debug")},
    **optional({key: rule for key, rule in RULES.items() if key.startswith("model.")}),
    "trusted": NAMES,
    "protocol": list_of("of knn, lbfgs, linear, semi, finetune", one_of(*PROTOCOLS)).or_(*PROTOCOLS, None),
    "transfer": list_of("of data sets", one_of(*DATA_SETS), least=0),
    **{f"paths.{name}": PATH for name in DATA_SETS},
    "untrained": SWITCH,
    "select_on": Rule(lambda v: v == "held_out", "held_out: test is scored once, and nothing is chosen on it"),
    "seeds": list_of("of seeds", whole(0, ANY_SEED)),
    "knn.k": whole(1),
    "knn.ks": list_of("of whole numbers of at least 1", whole(1)),
    "knn.temperature": POSITIVE,
    "knn.weighting": one_of("both", "plain", "weighted"),
    **{f"linear.{key}": rule for key, rule in _SGD.items()},
    **{f"finetune.{key}": rule for key, rule in _SGD.items()},
    "semi.fractions": Rule(
        lambda v: _SHARES.accepts(v) and len(set(map(share_name, v))) == len(v),
        f"{_SHARES.says} to six digits: their scores are named after them",
    ),
    "semi.epochs": Rule(
        lambda v: isinstance(v, list) and all(map(whole(1).accepts, v)), "whole numbers, one a fraction"
    ),
    "semi.lr": Rule(POSITIVE.accepts, f"{POSITIVE.says}, and only one: with few labels none are left to choose on"),
    "semi.batch_size": whole(2),
    "semi.start": whole(1, 3).or_("h"),
    "accelerator": one_of("auto", "cpu", "cuda", "mps"),
    "precision": one_of("32-true", "bf16-mixed", "16-mixed"),
    "cache": SWITCH,
}


def check_names(key: str, names: Iterable[Any], options: Sequence[str]) -> None:
    """Refuse a text that is none of the options, with the nearest one; other values are the ranges' own matter.

    Raises:
        UserError: naming the options.
    """
    for name in names:
        if isinstance(name, str) and name not in options:
            near = get_close_matches(name, options, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            what = "the protocols are" if key == "protocol" else "the data sets are"
            raise mistake(f"{key}={name}: unknown; {hint}{what} {', '.join(options)}")
