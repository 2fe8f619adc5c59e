"""Run several protocols on one encoder, with its data set and those of ``transfer``, and show their progress."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from simclr_lightning.data import ViewsDataModule
from simclr_lightning.encoders import Encoder
from simclr_lightning.evaluation.protocols import PROTOCOLS, features
from simclr_lightning.evaluation.protocols.features import Extractor, Features, checked_parts
from simclr_lightning.evaluation.protocols.frozen import lbfgs_score
from simclr_lightning.evaluation.protocols.score import Score
from simclr_lightning.evaluation.protocols.subject import Protocol, Subject

Start = Callable[[Encoder, int | str], tuple[nn.Module, int]]


@dataclass(frozen=True)
class Found:
    """The result of an evaluation.

    Attributes:
        head: the first keys of evaluation.json, which describe the encoder and the images.
        spec: the encoder's ``spec``.
        data: the name of the data set.
        scores: the scores, in the order of the protocols.
        untrained: the scores of an untrained encoder, by their keys.
        test_labels: (m,) int64, classes of the test images; None if only ``transfer`` was scored.
        class_names: the names of these classes.
    """

    head: Mapping[str, Any]
    spec: Mapping[str, Any]
    data: str
    scores: Sequence[Score]
    untrained: Mapping[str, Score] = field(default_factory=dict)
    test_labels: torch.Tensor | None = None
    class_names: tuple[str, ...] = ()


def find_protocol(name: str) -> Protocol:
    """Return the protocol with a name in `PROTOCOLS`, or with the dotted name of a function."""
    module, _, function = name.rpartition(".")
    found: Protocol = getattr(importlib.import_module(module or PROTOCOLS[name]), function)
    return found


def _only_h(encoder: Encoder, layer: int | str) -> tuple[nn.Module, int]:
    if layer != "h":
        raise ValueError(f"semi.start={layer} needs the projector of a run; use semi.start=h")
    return encoder, encoder.feature_dim


@dataclass
class Evaluation:
    """Evaluate encoders with the same devices, precision and seeds.

    Args:
        devices: features are extracted on all of them; trainings use the first.
        console: progress bars and lines are printed there.
        precision: of all forward passes, by Lightning's name.
        seeds: protocols that train do so once per seed.
        cache: the folder in which features are cached; None: no cache.
        start: takes an encoder, and "h" or a number of projector layers; returns the network from which ``semi`` starts
            and the width of its output.
    """

    devices: Sequence[torch.device]
    console: Console = field(default_factory=Console)
    precision: str = "32-true"
    seeds: Sequence[int] = (0,)
    cache: Path | None = None
    start: Start = _only_h

    def run(
        self,
        encoder: Encoder,
        data: ViewsDataModule | None,
        protocols: Sequence[str],
        *,
        options: Mapping[str, Mapping[str, Any]],
        transfer: Mapping[str, ViewsDataModule] | None = None,
        what: str = "",
    ) -> list[Score]:
        """Return an encoder's scores: of every protocol on ``data``, and of L-BFGS on each data set of ``transfer``.

        Args:
            encoder: in evaluation mode; it is not changed.
            data: labeled images for train and test; None: only ``transfer``.
            protocols: names in `PROTOCOLS`, or dotted names of other protocols, which have no options.
            options: the options of each protocol, by its name.
            transfer: further labeled data sets, by name.
            what: a prefix of every printed line, such as "untrained ".

        Raises:
            ValueError: the images have no labels or one class, or are too few; nothing is scored.
        """
        scores = []
        if data is not None:
            with self._bar() as bar:
                subject = self._subject(encoder, data, bar, f"{what}features")
                if "semi" in protocols:  # a wrong semi.start fails before the other protocols take hours
                    subject.start(options["semi"]["start"])
                for name in protocols:
                    for score in find_protocol(name)(subject, options.get(name, {})):
                        scores.append(self._printed(score, what))
        for name, there in (transfer or {}).items():
            with self._bar() as bar:
                found = self._features(encoder, there, bar, f"{what}features of {name}")
            score = lbfgs_score(found, key=f"transfer_{name}", title=f"{name}: logistic regression")
            scores.append(self._printed(score, what))
        return scores

    def _subject(self, encoder: Encoder, data: ViewsDataModule, bar: Progress, what: str) -> Subject:
        return Subject(
            encoder,
            start=lambda layer: self.start(encoder, layer),
            extract=lambda: self._features(encoder, data, bar, what),
            data=data,
            parts=checked_parts(data),
            seeds=self.seeds,
            device=self.devices[0],
            precision=self.precision,
            steps=_task_of(bar),
        )

    def _features(self, encoder: Encoder, data: ViewsDataModule, bar: Progress, what: str) -> Features:
        parts = checked_parts(data)
        task = bar.add_task(what, total=len(parts.bank) + len(parts.held_out) + len(parts.test))
        extractor = Extractor(
            self.devices,
            self.precision,
            cache=self.cache,
            after_batch=lambda count: bar.advance(task, count),
            report=lambda line: self.console.print(line, markup=False),
        )
        found = features.features(encoder, data, extractor)
        bar.remove_task(task)
        return found

    @contextmanager
    def _bar(self) -> Iterator[Progress]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as bar:
            yield bar

    def _printed(self, score: Score, what: str) -> Score:
        self.console.print(f"{what}{score.title}: {score.mean:.1%} ({score.seconds:.1f} s)", markup=False)
        return score


def found(
    encoder: Encoder,
    data: ViewsDataModule | None,
    scores: Sequence[Score],
    untrained: Mapping[str, Score],
    *,
    head: Mapping[str, Any],
) -> Found:
    """Return the result of an evaluation: scores with a description of the encoder and the images.

    Args:
        encoder: the encoder that was scored.
        data: the images; None if only ``transfer`` was scored.
        scores: as `Evaluation.run` returns them.
        untrained: the scores of an untrained encoder, by their keys.
        head: the first keys of evaluation.json; ``head["data"]`` is the data set's ``_target_``.
    """
    name = str(head["data"]).rpartition(".")[2]
    head = {**head, "encoder": features.fingerprint(encoder), "feature_dim": encoder.feature_dim}
    if data is None:
        return Found(head, encoder.spec, name, scores, untrained)
    splits, parts = data.load(), checked_parts(data)
    assert splits.test is not None
    assert splits.test.labels is not None
    head |= {"data_fingerprint": splits.fingerprint, "classes": len(splits.class_names or ())}
    trained = len(parts.bank) + len(parts.held_out) - splits.val_images
    head |= {"train_images": trained, "test_images": len(parts.test)}
    labels = splits.test.labels[parts.test]
    return Found(head, encoder.spec, name, scores, untrained, labels, splits.class_names or ())


def _task_of(bar: Progress) -> Callable[[str, int], Callable[[], None]]:
    def start(what: str, steps: int) -> Callable[[], None]:
        for task in bar.task_ids:  # of the previous training
            bar.remove_task(task)
        task = bar.add_task(what, total=steps)
        return lambda: bar.advance(task)

    return start
