"""Score the features of a frozen encoder by nearest neighbors and by logistic regression, as in the paper.

Each choice is made on the held-out part of train; test is used once, in the last step of each protocol.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simclr_lightning.evaluation import choose_l2, knn_sweep
from simclr_lightning.evaluation.protocols.features import Features
from simclr_lightning.evaluation.protocols.score import Score, made_score, needs_held_out, share_of
from simclr_lightning.evaluation.protocols.subject import Subject


def knn(subject: Subject, options: Mapping[str, Any]) -> list[Score]:
    """Score the k nearest neighbors; ``options`` are those of `knn_scores`."""
    return knn_scores(subject.features, options)


def lbfgs(subject: Subject, options: Mapping[str, Any]) -> list[Score]:
    """Score logistic regression on h, fitted by L-BFGS (paper, appendix B.8); there are no options."""
    return [lbfgs_score(subject.features)]


def knn_scores(features: Features, options: Mapping[str, Any]) -> list[Score]:
    """Score the k nearest neighbors by cosine, for every k, with plain and with weighted votes.

    Args:
        features: h of the bank and of test.
        options: ``k`` of the score, further ``ks`` of the curve, ``temperature``, and ``weighting``: plain, weighted
            (a vote counts exp(cosine / temperature)) or both.
    """
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


def lbfgs_score(features: Features, *, key: str = "linear", title: str = "logistic regression, L-BFGS") -> Score:
    """Score logistic regression on h; the best of 45 l2 values is chosen on the held-out part (paper, appendix B.8)."""
    needs_held_out(features.held_out_y)
    started = time.perf_counter()
    probe = choose_l2(
        features.bank_h, features.bank_y, features.held_out_h, features.held_out_y, classes=features.classes
    )
    details = {f"{key}_l2": probe.l2, f"{key}_held_out_top1": probe.held_out_accuracy}
    score = made_score(key, title, [probe.predict(features.test_h)], features.test_y, details)
    return replace(score, seconds=time.perf_counter() - started)
