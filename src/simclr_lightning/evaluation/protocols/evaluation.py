"""Run several protocols on an encoder, on its images and on those of transfer, with a progress bar for each."""

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
    """What an evaluation found.

    Attributes:
        head: the first keys of evaluation.json: the encoder, the images.
        spec: the encoder's.
        data: the data set's name.
        scores: in the order of the protocols.
        untrained: the same scores of an untrained encoder, by key.
        test_labels: of the images that the scores are on; None where only transfer was asked for.
        class_names: of the same images.
    """

    head: Mapping[str, Any]
    spec: Mapping[str, Any]
    data: str
    scores: Sequence[Score]
    untrained: Mapping[str, Score] = field(default_factory=dict)
    test_labels: torch.Tensor | None = None
    class_names: tuple[str, ...] = ()


def find_protocol(name: str) -> Protocol:
    """Return the protocol that `PROTOCOLS` lists under a name."""
    found: Protocol = getattr(importlib.import_module(PROTOCOLS[name]), name)
    return found


def _only_h(encoder: Encoder, layer: int | str) -> tuple[nn.Module, int]:
    if layer != "h":
        raise ValueError(f"semi.start={layer} needs the projector of a run; use semi.start=h")
    return encoder, encoder.feature_dim


@dataclass
class Evaluation:
    """How encoders are evaluated.

    Args:
        devices: the features are extracted on all of them; trainings use the first.
        console: where bars and lines go.
        precision: of all forward passes, by Lightning's name.
        seeds: one training each for the protocols that train.
        cache: the folder that keeps the features; None keeps nothing.
        start: returns the network that ``semi`` starts from and its width, for an encoder and "h" or a layer's number.
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
        """Score an encoder by every protocol on its images, and by L-BFGS on each data set of transfer.

        Args:
            encoder: in evaluation mode; never changed.
            data: labeled images for train and test; None where only transfer is asked for.
            protocols: names in `PROTOCOLS`.
            options: of each protocol, by its name.
            transfer: further labeled images by name.
            what: comes before every line that is printed, such as "untrained ".

        Raises:
            ValueError: images without labels, of one class or too few; nothing is scored then.
        """
        scores = []
        if data is not None:
            with self._bar() as bar:
                subject = self._subject(encoder, data, bar, f"{what}features")
                if "semi" in protocols:  # refused before hours of other protocols
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
    """Return the scores of an evaluation with what they were measured on.

    Args:
        encoder: the one that was scored.
        data: the images; None where only transfer was asked for.
        scores: as `Evaluation.run` returns them.
        untrained: the same of an untrained encoder, by key.
        head: the first keys of evaluation.json; ``data`` in it is the data set's ``_target_``.
    """
    name = str(head["data"]).rpartition(".")[2]
    head = {**head, "encoder": features.fingerprint(encoder), "feature_dim": encoder.feature_dim}
    if data is None:
        return Found(head, encoder.spec, name, scores, untrained)
    splits, parts = data.load(), checked_parts(data)
    assert splits.test is not None
    assert splits.test.labels is not None
    head |= {"data_fingerprint": splits.fingerprint, "classes": len(splits.class_names or ())}
    head |= {"train_images": len(parts.bank) + len(parts.held_out), "test_images": len(parts.test)}
    labels = splits.test.labels[parts.test]
    return Found(head, encoder.spec, name, scores, untrained, labels, splits.class_names or ())


def _task_of(bar: Progress) -> Callable[[str, int], Callable[[], None]]:
    def start(what: str, steps: int) -> Callable[[], None]:
        for task in bar.task_ids:  # the training before
            bar.remove_task(task)
        task = bar.add_task(what, total=steps)
        return lambda: bar.advance(task)

    return start
