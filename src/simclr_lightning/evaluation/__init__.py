"""Evaluate a representation h, with labels and without.

``features`` computes h of images, ``neighbours`` finds nearest neighbors, ``knn`` classifies by their votes, ``search``
finds near-duplicates, ``probe`` fits logistic regression, ``subsets`` draws class-balanced labels, ``intervals``
computes confidence intervals, ``label_free`` computes scores without labels. ``classifier`` trains by SGD; import it
from `simclr_lightning.evaluation.classifier`, because it imports Lightning, which takes seconds.
"""

from simclr_lightning.evaluation.features import extract
from simclr_lightning.evaluation.intervals import bootstrap_interval, seeds_interval
from simclr_lightning.evaluation.knn import knn_accuracy, knn_predict, knn_sweep, pixels
from simclr_lightning.evaluation.label_free import (
    BETTER,
    alignment,
    effective_rank,
    neighbour_agreement,
    rankme,
    score_views,
    uniformity,
)
from simclr_lightning.evaluation.neighbours import nearest
from simclr_lightning.evaluation.probe import (
    L2_GRID,
    LinearWeights,
    LogisticResult,
    accuracy,
    choose_l2,
    fit_logistic,
)
from simclr_lightning.evaluation.search import Pairs, exact, faiss_index, groups, near_duplicates, near_duplicates_by
from simclr_lightning.evaluation.subsets import balanced_subset

__all__ = [
    "BETTER",
    "L2_GRID",
    "LinearWeights",
    "LogisticResult",
    "Pairs",
    "accuracy",
    "alignment",
    "balanced_subset",
    "bootstrap_interval",
    "choose_l2",
    "effective_rank",
    "exact",
    "extract",
    "faiss_index",
    "fit_logistic",
    "groups",
    "knn_accuracy",
    "knn_predict",
    "knn_sweep",
    "near_duplicates",
    "near_duplicates_by",
    "nearest",
    "neighbour_agreement",
    "pixels",
    "rankme",
    "score_views",
    "seeds_interval",
    "uniformity",
]
