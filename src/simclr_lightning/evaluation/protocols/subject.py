"""What a protocol takes: the encoder, the labeled images, and where and how often to train."""

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
    """A protocol: a function of the subject and of its own options that returns one or more scores."""

    def __call__(self, subject: Subject, options: Mapping[str, Any]) -> list[Score]:
        """Score the subject's encoder."""


@dataclass
class Subject:
    """The encoder that a protocol scores, and the labeled images.

    Args:
        encoder: image -> h (b, ``feature_dim``); never changed.
        start: returns the network that fine-tuning starts from and the width of its output, for "h" (the encoder) or a
            number of projector layers after it.
        extract: returns h of the three parts; called once, when `features` is first asked for.
        data: the labeled images; trainings see its recipe of views.
        parts: the images' rows by their use.
        seeds: one training each.
        device: where to train.
        precision: of the training, by Lightning's name.
        steps: called when a training starts, with its name and its optimizer steps; returns a function to call after
            each step.
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
        """h of the three parts, extracted once."""
        return self.extract()

    @property
    def splits(self) -> Splits:
        """The images."""
        return self.data.load()

    @property
    def labels(self) -> Tensor:
        """The classes of train (n,)."""
        labels = self.splits.train.labels
        assert labels is not None
        return labels

    @property
    def classes(self) -> int:
        """How many classes there are."""
        assert self.splits.class_names is not None
        return len(self.splits.class_names)
