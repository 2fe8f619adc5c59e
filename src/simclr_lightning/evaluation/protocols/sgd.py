"""Train on labels by SGD and score the result, as in the paper: a linear layer, few labels, all labels.

Each choice is made on the held-out part of train; test is used once, in the last step of each protocol.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simclr_lightning.data import Splits, ViewsDataModule
from simclr_lightning.data.images import Rows
from simclr_lightning.evaluation import balanced_subset
from simclr_lightning.evaluation.classifier import (
    Classifier,
    Diverged,
    FineTuner,
    LinearProbe,
    fit_classifier,
    predict_classes,
)
from simclr_lightning.evaluation.protocols.score import Score, made_score, needs_held_out, share_of
from simclr_lightning.evaluation.protocols.subject import Subject
from simclr_lightning.text import share_name


def linear(subject: Subject, options: Mapping[str, Any]) -> list[Score]:
    """Train a linear layer on the frozen h by SGD, with crop and flip (paper, appendix B.6)."""
    return _trained("linear_sgd", "linear layer, SGD", subject, options, frozen=True)


def finetune(subject: Subject, options: Mapping[str, Any]) -> list[Score]:
    """Train the encoder and a linear layer on all labels."""
    return _trained("finetune", "fine-tuning, all labels", subject, options, frozen=False)


def semi(subject: Subject, options: Mapping[str, Any]) -> list[Score]:
    """Train the encoder and a linear layer on a class-balanced share of the labels (paper, appendix B.5).

    Nothing is chosen. ``options["start"]`` is "h", or the number of projector layers to start from.
    """
    start = subject.start(options["start"])
    scores = []
    for fraction, epochs in zip(options["fractions"], options["epochs"], strict=True):
        started, share = time.perf_counter(), share_name(fraction)
        predicted, files, most = [], {}, 0
        for seed in subject.seeds:
            rows = balanced_subset(subject.labels[: subject.splits.training_images], fraction=fraction, seed=seed)
            files[f"subset_{share}pct_seed{seed}.csv"] = _listed(subject.splits, rows)
            most = len(rows)
            classifier = _fit(
                subject, *start, rows, lr=options["lr"], epochs=epochs, batch_size=options["batch_size"],
                frozen=False, seed=seed, what=f"{share} % of the labels",
            )  # fmt: skip
            predicted.append(_on_test(subject, classifier))
        key, title = f"semi_{share}pct", f"fine-tuning, {share} % of the labels ({most} images)"
        details = {f"{key}_images": most, f"{key}_start": options["start"]}
        score = made_score(key, title, predicted, _test_labels(subject), details)
        scores.append(replace(score, files=files, seconds=time.perf_counter() - started))
    return scores


def _trained(key: str, title: str, subject: Subject, options: Mapping[str, Any], *, frozen: bool) -> list[Score]:
    """Train on all labels and score on test; if there are several rates, choose one on the held-out part first."""
    started = time.perf_counter()
    body, width = subject.encoder, int(subject.encoder.feature_dim)  # type: ignore[arg-type]

    def fit(rows: Tensor, lr: float, seed: int, what: str) -> Classifier:
        return _fit(
            subject, body, width, rows, lr=lr, epochs=options["epochs"], batch_size=options["batch_size"],
            frozen=frozen, seed=seed, what=what,
        )  # fmt: skip

    rates = options["lr"] if isinstance(options["lr"], list) else [options["lr"]]
    lr, details = rates[0], {}
    if len(rates) > 1:
        tried = {}
        for rate in sorted(rates):
            train = partial(fit, subject.parts.bank, rate, subject.seeds[0], f"{title}, lr {rate:g}")
            tried[rate] = _held_out_top1(subject, train)
        lr = max(tried, key=lambda rate: tried[rate])  # the lowest of the best
        details = {f"{key}_held_out_top1": tried[lr]}
    rows = torch.cat((subject.parts.bank, subject.parts.held_out)).sort().values
    rows = rows[rows < subject.splits.training_images]  # a validation part is never trained on
    predicted = [_on_test(subject, fit(rows, lr, seed, title)) for seed in subject.seeds]
    details = {f"{key}_lr": lr, **details}
    score = made_score(key, title, predicted, _test_labels(subject), details)
    return [replace(score, seconds=time.perf_counter() - started)]


def _held_out_top1(subject: Subject, fit: Callable[[], Classifier]) -> float:
    """Return top-1 on the held-out part; 0 if the training diverges."""
    held_out = subject.parts.held_out
    needs_held_out(held_out)
    try:
        classifier = fit()
    except Diverged:
        return 0.0
    batches = subject.data.eval_batches(subject.splits.train, held_out)
    predicted = predict_classes(classifier, batches, device=subject.device, precision=subject.precision)
    return share_of(predicted == subject.labels[held_out])


def _on_test(subject: Subject, classifier: Classifier) -> Tensor:
    test = subject.splits.test
    assert test is not None
    batches = subject.data.eval_batches(test, subject.parts.test)
    return predict_classes(classifier, batches, device=subject.device, precision=subject.precision)


def _fit(
    subject: Subject,
    body: nn.Module,
    width: int,
    rows: Tensor,
    *,
    lr: float,
    epochs: int,
    batch_size: int,
    frozen: bool,
    seed: int,
    what: str,
) -> Classifier:
    """Return a classifier trained on these rows of train; an epoch is floor(rows / batch) steps."""
    images, size = Rows(subject.splits.train, rows), min(batch_size, len(rows))
    if size < 2:
        raise ValueError(f"{what}: {len(rows)} labeled image(s) are too few to train on; raise semi.fractions")
    assert images.labels is not None
    splits = replace(subject.splits, train=images, test=None, held_out=rows[:0], val_images=0)
    data = ViewsDataModule(
        splits, batch_size=size, recipe=subject.data.recipe, seed=seed,
        num_workers=subject.data.num_workers, resident=subject.data.resident,
    )  # fmt: skip
    data.start_method = subject.data.start_method
    torch.manual_seed(seed)  # for layers such as dropout; order and views have keyed random numbers
    make = LinearProbe if frozen else FineTuner
    classifier = make(body, subject.classes, width=width, labels=images.labels, lr=lr, batch_size=size)
    after_step = subject.steps(what, epochs * data.steps_per_epoch)
    fit_classifier(
        classifier, data, epochs=epochs, device=subject.device, precision=subject.precision, after_step=after_step
    )
    return classifier.eval()


def _test_labels(subject: Subject) -> Tensor:
    test = subject.splits.test
    assert test is not None
    assert test.labels is not None
    return test.labels[subject.parts.test]


def _listed(splits: Splits, rows: Tensor) -> str:
    """Return the chosen images with their classes, as CSV."""
    names, labels, classes = splits.train.names, splits.train.labels, splits.class_names
    assert labels is not None
    assert classes is not None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class"])
    writer.writerows([names[row], classes[int(labels[row])]] for row in rows.tolist())
    return text.getvalue()
