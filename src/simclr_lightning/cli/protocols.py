"""The paper's protocols on kept features, and what each of them finds: nearest neighbours, logistic regression.

What is chosen is chosen on the held-out part of train; test is touched once, in the last step of each protocol.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from simclr_lightning.cli.errors import UserError
from simclr_lightning.cli.features import Features
from simclr_lightning.evaluation import bootstrap_interval, choose_l2, knn_sweep, seeds_interval


@dataclass(frozen=True)
class Score:
    """One line of the table.

    Args:
        key: its name in evaluation.json, before "_top1".
        title: its name in the table.
        top1: the score of each seed, fractions.
        predicted: the first seed's classes of the test images (m,).
        correct: which of them are right (m,).
        details: more for evaluation.json: what was chosen, further scores.
        files: texts to write beside evaluation.json, by name.
        seconds: how long it took.
    """

    key: str
    title: str
    top1: tuple[float, ...]
    predicted: Tensor
    correct: Tensor
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(self.top1) / len(self.top1)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: over the seeds when there are several, else the bootstrap over test images."""
        return seeds_interval(self.top1) if len(self.top1) > 1 else bootstrap_interval(self.correct)


def knn(features: Features, options: Mapping[str, Any]) -> list[Score]:
    """k nearest neighbours by cosine: plain votes and votes weighted by exp(cosine / temperature), for every k."""
    started = time.perf_counter()
    most, k = len(features.bank_y), int(options["k"])
    ks = sorted({k, *(int(other) for other in options["ks"] if other <= most)})
    kinds = {"plain": ("knn", None), "weighted": ("knn_weighted", float(options["temperature"]))}
    wanted = [kinds[name] for name in kinds if options["weighting"] in ("both", name)]
    found = knn_sweep(
        features.bank_h, features.bank_y, features.test_h,
        ks=ks, temperatures=[temperature for _, temperature in wanted], classes=features.classes,
    )  # fmt: skip
    scores = []
    for key, temperature in wanted:
        curve = {f"{key}_k{other}_top1": share_of(found[other, temperature] == features.test_y) for other in ks}
        title = f"kNN, k {k}" + ("" if temperature is None else f", weighted {temperature:g}")
        details = {**curve, f"{key}_k": k} | ({} if temperature is None else {f"{key}_temperature": temperature})
        scores.append(made_score(key, title, [found[k, temperature]], features.test_y, details))
    return [replace(score, seconds=time.perf_counter() - started) for score in scores]


def lbfgs(features: Features, *, key: str = "linear", title: str = "logistic regression, L-BFGS") -> Score:
    """Logistic regression on h, its l2 of 45 values chosen on the held-out part (paper, appendix B.8)."""
    needs_held_out(features.held_out_y)
    started = time.perf_counter()
    probe = choose_l2(
        features.bank_h, features.bank_y, features.held_out_h, features.held_out_y, classes=features.classes
    )
    details = {f"{key}_l2": probe.l2, f"{key}_held_out_top1": probe.held_out_accuracy}
    score = made_score(key, title, [probe.predict(features.test_h)], features.test_y, details)
    return replace(score, seconds=time.perf_counter() - started)


def made_score(key: str, title: str, predicted: Sequence[Tensor], labels: Tensor, details: Mapping[str, Any]) -> Score:
    """The score of predicted classes, one tensor (m,) a seed, against the true ones (m,)."""
    top1 = tuple(share_of(one == labels) for one in predicted)
    return Score(key, title, top1, predicted[0], predicted[0] == labels, details)


def share_of(correct: Tensor) -> float:
    """The fraction of true values."""
    return correct.double().mean().item()


def needs_held_out(rows: Tensor) -> None:
    """Refuse to choose without images to choose on.

    Raises:
        UserError: there are none.
    """
    if not len(rows):
        raise UserError("there are too few labelled images to hold any out, and l2 and lr are chosen on those")
