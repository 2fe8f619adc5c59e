"""Intervals of a score, against resampling and SciPy; class-balanced subsets."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from simclr_lightning.evaluation import balanced_subset, bootstrap_interval, seeds_interval


@pytest.mark.parametrize(("right", "n"), [(83, 100), (5, 30), (400, 500)])
def test_the_bootstrap_interval_is_the_limit_of_resampling(right: int, n: int) -> None:
    correct = torch.arange(n) < right
    means = np.random.default_rng(0).choice(correct.numpy(), (20_000, n)).mean(1)
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(correct) == pytest.approx(expected, abs=1.01 / n)
    wide, narrow = bootstrap_interval(correct, level=0.99), bootstrap_interval(correct, level=0.5)
    assert wide[0] < narrow[0] < right / n < narrow[1] < wide[1]


def test_intervals_of_only_correct_only_wrong_and_no_predictions() -> None:
    assert bootstrap_interval(torch.ones(10, dtype=torch.bool)) == (1.0, 1.0)
    assert bootstrap_interval(torch.zeros(10, dtype=torch.bool)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(torch.ones(0, dtype=torch.bool))


def test_the_interval_over_seeds_is_students() -> None:
    scores = [0.71, 0.74, 0.70, 0.72]
    error = scipy.stats.sem(scores)
    expected = scipy.stats.t.interval(0.95, 3, loc=np.mean(scores), scale=error)
    assert seeds_interval(scores) == pytest.approx(expected)
    assert seeds_interval([0.0, 1.0]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="at least two"):
        seeds_interval([0.5])


@pytest.mark.parametrize(("fraction", "each"), [(0.01, 3), (0.1, 30), (0.5, 150), (0.0001, 1)])
def test_a_subset_has_the_same_number_of_every_class(fraction: float, each: int) -> None:
    labels = torch.arange(3000) % 10
    labels = labels[torch.randperm(3000, generator=torch.Generator().manual_seed(0))]
    rows = balanced_subset(labels, fraction=fraction, seed=0)
    assert torch.bincount(labels[rows], minlength=10).tolist() == [each] * 10
    assert torch.equal(rows, rows.unique())  # sorted, none twice
    assert torch.equal(rows, balanced_subset(labels, fraction=fraction, seed=0))
    assert not torch.equal(rows, balanced_subset(labels, fraction=fraction, seed=1))


def test_uneven_classes_give_the_same_number_and_a_small_class_gives_all_its_images() -> None:
    labels = torch.tensor([0] * 500 + [1] * 90 + [2] * 10 + [-1] * 400)
    rows = balanced_subset(labels, fraction=0.1, seed=3)
    assert torch.bincount(labels[rows]).tolist() == [20, 20, 10]
    smaller = balanced_subset(labels, fraction=0.05, seed=3)
    assert set(smaller.tolist()) < set(rows.tolist())


def test_a_subset_is_drawn_evenly() -> None:
    """Over many seeds every image of a class is drawn equally often."""
    labels = torch.arange(40) % 2
    counts = torch.zeros(40)
    for seed in range(600):
        counts[balanced_subset(labels, fraction=0.25, seed=seed)] += 1
    assert counts.sum() == 600 * 10
    # Binomial(600, 1/4): mean 150, deviation 10.6
    assert (counts - 150).abs().max() < 4.5 * 10.6


def test_no_labels_and_wrong_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match="no image has a label"):
        balanced_subset(torch.full((5,), -1), fraction=0.5, seed=0)
    for fraction in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="fraction of labels"):
            balanced_subset(torch.tensor([0, 1]), fraction=fraction, seed=0)
