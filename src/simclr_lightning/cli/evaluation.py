"""One judgement: the protocols that were asked for, on a run's images and on those of transfer, with a bar for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simclr_lightning.cli import config, features, kept, protocols, subject, supervised
from simclr_lightning.cli.build import make_data
from simclr_lightning.cli.devices import accelerator
from simclr_lightning.cli.errors import UserError
from simclr_lightning.cli.features import Features, Maker, Parts
from simclr_lightning.cli.protocols import Score
from simclr_lightning.cli.supervised import Subject
from simclr_lightning.data import ViewsDataModule
from simclr_lightning.encoders import Encoder

DEFAULT = ("knn", "lbfgs")  # without protocol= and transfer=


@dataclass(frozen=True)
class Found:
    """What a judgement found.

    Args:
        head: the first keys of evaluation.json: the encoder, the images.
        spec: the encoder's.
        data: the data set's name.
        scores: in the order asked for.
        untrained: the same of an untrained encoder, by key.
        test_labels: of the images the scores are on (transfer's have their own), None where only transfer was asked.
        class_names: of the same.
    """

    head: Mapping[str, Any]
    spec: Mapping[str, Any]
    data: str
    scores: Sequence[Score]
    untrained: Mapping[str, Score] = field(default_factory=dict)
    test_labels: torch.Tensor | None = None
    class_names: tuple[str, ...] = ()


class Evaluation:
    """An encoder and how it is judged.

    Args:
        run: what the encoder was loaded from.
        encoder: in evaluation mode; never changed.
        size: side of the images in pixels.
        console: where bars and lines go.
    """

    def __init__(self, run: Path, encoder: Encoder, *, size: int, console: Console) -> None:
        self.run = run
        self.encoder = encoder
        self.size = size
        self.console = console

    def judge(self, cfg: DictConfig, others: Mapping[str, DictConfig]) -> Found:
        """Every protocol on the configuration's images, and L-BFGS on each of the others'.

        Raises:
            UserError: images without labels, of one class or too few; nothing is scored then.
        """
        plain = config.to_plain(cfg)
        asked = plain["protocol"] or (() if others else DEFAULT)
        asked = [asked] if isinstance(asked, str) else list(asked)
        if "semi" in asked:  # refused before hours of other protocols
            subject.start_of(self.encoder, self.run, plain["semi"]["start"])
        own = self._data(plain, plain["knn"]["k"] if "knn" in asked else 1) if asked else None
        further = {}
        for name, other in others.items():
            with subject.paths_named(name):
                further[name] = self._data(config.to_plain(other), 1)
        scores = list(self._scores(self.encoder, plain, asked, own, further, fresh=False))
        untrained: dict[str, Score] = {}
        if plain["untrained"]:
            fresh = subject.untrained(self.encoder, seed=plain["seed"])
            untrained = {s.key: s for s in self._scores(fresh, plain, asked, own, further, fresh=True)}
        head = {
            "data": plain["data"]["dataset"]["_target_"],
            "path": plain["data"]["path"],
            "seed": plain["seed"],
            "seeds": plain["seeds"],
            "encoder": features.fingerprint(self.encoder),
            "size": self.size,
            "feature_dim": self.encoder.feature_dim,
        }
        name = head["data"].rpartition(".")[2]
        if own is None:
            return Found({**head, "data": None, "path": None}, self.encoder.spec, name, scores, untrained)
        data, parts = own
        splits = data.load()
        assert splits.test is not None
        assert splits.test.labels is not None
        head |= {"data_fingerprint": splits.fingerprint, "classes": len(splits.class_names or ())}
        trained = len(parts.bank) + len(parts.held_out) - splits.val_images
        head |= {"train_images": trained, "test_images": len(parts.test)}
        labels = splits.test.labels[parts.test]
        return Found(head, self.encoder.spec, name, scores, untrained, labels, splits.class_names or ())

    def _data(self, plain: dict[str, Any], k: int) -> tuple[ViewsDataModule, Parts]:
        plain["views"]["size"] = self.size
        data = make_data(config.from_plain(plain))
        return data, checked_parts(data, k)

    def _scores(
        self,
        encoder: Encoder,
        plain: Mapping[str, Any],
        asked: Sequence[str],
        own: tuple[ViewsDataModule, Parts] | None,
        further: Mapping[str, tuple[ViewsDataModule, Parts]],
        *,
        fresh: bool,
    ) -> Iterator[Score]:
        """Scores as they are found, a line each."""
        what = "untrained " if fresh else ""
        if own is not None:
            made: Features | None = None
            if {"knn", "lbfgs"} & set(asked):
                made = self._features(encoder, own, plain, f"{what}features", fresh=fresh)
            for name in asked:
                for score in self._protocol(name, encoder, plain, own, made, fresh=fresh):
                    yield self._said(score, what)
        for name, there in further.items():
            made = self._features(encoder, there, plain, f"{what}features of {name}", fresh=fresh)
            score = protocols.lbfgs(made, key=f"transfer_{name}", title=f"{name}: logistic regression")
            yield self._said(score, what)

    def _protocol(
        self,
        name: str,
        encoder: Encoder,
        plain: Mapping[str, Any],
        own: tuple[ViewsDataModule, Parts],
        made: Features | None,
        *,
        fresh: bool,
    ) -> list[Score]:
        if made is not None and name in ("knn", "lbfgs"):
            return protocols.knn(made, plain["knn"]) if name == "knn" else [protocols.lbfgs(made)]
        start = subject.start_of(encoder, self.run, plain["semi"]["start"] if name == "semi" else "h", fresh=fresh)
        with self._bar() as bar:
            given = Subject(
                encoder, start, *own, seeds=plain["seeds"], device=devices(plain)[0], precision=plain["precision"],
                steps=_task_of(bar),
            )  # fmt: skip
            if name == "semi":
                return supervised.semi(given, plain["semi"])
            return [{"linear": supervised.linear, "finetune": supervised.finetune}[name](given, plain[name])]

    def _features(
        self,
        encoder: Encoder,
        own: tuple[ViewsDataModule, Parts],
        plain: Mapping[str, Any],
        what: str,
        *,
        fresh: bool,
    ) -> Features:
        data, parts = own
        with self._bar() as bar:
            task = bar.add_task(what, total=len(parts.bank) + len(parts.held_out) + len(parts.test))
            maker = Maker(
                devices(plain), plain["precision"],
                cache=kept.folder(self.run) if plain["cache"] and not fresh else None,
                after_batch=lambda count: bar.advance(task, count),
                say=lambda line: self.console.print(line, markup=False),
            )  # fmt: skip
            return features.features(encoder, data, maker)

    @contextmanager
    def _bar(self) -> Iterator[Progress]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as bar:
            yield bar

    def _said(self, score: Score, what: str) -> Score:
        self.console.print(f"{what}{score.title}: {score.mean:.1%} ({score.seconds:.1f} s)", markup=False)
        return score


def checked_parts(data: ViewsDataModule, k: int) -> Parts:
    """The labelled parts of the images.

    Args:
        data: the images.
        k: neighbours that will vote.

    Raises:
        UserError: there are no labels for train or test, one class, or fewer images than k.
    """
    splits = data.load()
    parts = features.labelled_parts(splits)
    where = "the images" if data.path is None else f"data.path={data.path}"
    if parts is None or not len(parts.test):
        raise UserError(f"{where}: there are no labels for test to score with; give labelled images")
    assert splits.train.labels is not None
    classes = splits.train.labels[parts.bank].unique()
    if len(classes) < 2:
        raise UserError(
            f"{where}: the labelled training images are of {len(classes)} class(es); a score needs at least 2"
        )
    if k > len(parts.bank):
        raise UserError(
            f"knn.k={k}, but only {len(parts.bank)} labelled images vote; use knn.k={len(parts.bank)} or less"
        )
    return parts


def devices(plain: Mapping[str, Any]) -> list[torch.device]:
    """The devices that ``accelerator`` means: every GPU, or one other."""
    try:
        kind = accelerator(config.from_plain({"trainer": {"accelerator": plain["accelerator"]}}))
    except UserError as error:
        raise UserError(str(error).replace("trainer.accelerator", "accelerator")) from None
    if kind == "cuda":
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device(kind)]


def _task_of(bar: Progress) -> Callable[[str, int], Callable[[], None]]:
    def start(what: str, steps: int) -> Callable[[], None]:
        task = bar.add_task(what, total=steps)
        return lambda: bar.advance(task)

    return start
