"""Define `Subject`, the argument of a protocol: the encoder, the labeled images, the device and the seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol as TypingProtocol

import torch
from torch import Tensor, nn

from simclr_lightning.data import Splits, ViewsDataModule
from simclr_lightning.evaluation.protocols.features import Features, Parts
from simclr_lightning.evaluation.protocols.score import Score


class Protocol(TypingProtocol):
    """A protocol: a function that takes the subject and the protocol's options, and returns one or more scores."""

    def __call__(self, subject: Subject, options: Mapping[str, Any]) -> list[Score]:
        """Return the scores of the subject's encoder."""


@dataclass
class Subject:
    """The encoder that a protocol scores, and the labeled images.

    Args:
        encoder: (b, 3, S, S) in [0, 1] -> h (b, ``feature_dim``); it is not changed.
        start: returns the network from which fine-tuning starts and the width of its output, for "h" (the encoder) or a
            number of projector layers after it.
        extract: returns h of the three parts; called once, when `features` is first read.
        data: the labeled images, with the recipe of the views that trainings use.
        parts: the row numbers of bank, held-out and test images.
        seeds: train once per seed.
        device: the device of trainings.
        precision: of trainings, by Lightning's name.
        steps: called at the start of a training with its name and its number of optimizer steps; returns a function to
            call after each step.
    """

    encoder: nn.Module
    start: Callable[[int | str], tuple[nn.Module, int]]
    extract: Callable[[], Features]
    data: ViewsDataModule
    parts: Parts
    seeds: Sequence[int]
    device: torch.device
    precision: str
    steps: Callable[[str, int], Callable[[], None]]

    @cached_property
    def features(self) -> Features:
        """Return h of the three parts, extracted once."""
        return self.extract()

    @property
    def splits(self) -> Splits:
        """Return the images: train, test, and the rows held out of train."""
        return self.data.load()

    @property
    def labels(self) -> Tensor:
        """Return the classes of the training images, (n,) int64."""
        labels = self.splits.train.labels
        assert labels is not None
        return labels

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        assert self.splits.class_names is not None
        return len(self.splits.class_names)
