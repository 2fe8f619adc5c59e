"""Judging h: features, nearest neighbours, kNN, logistic regression, and scores that need no labels."""

from simclr_lightning.evaluation.features import extract
from simclr_lightning.evaluation.knn import knn_accuracy, knn_predict, pixels
from simclr_lightning.evaluation.label_free import (
    BETTER,
    alignment,
    effective_rank,
    judge_views,
    neighbour_agreement,
    rankme,
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

__all__ = [
    "BETTER",
    "L2_GRID",
    "LinearWeights",
    "LogisticResult",
    "Pairs",
    "accuracy",
    "alignment",
    "choose_l2",
    "effective_rank",
    "exact",
    "extract",
    "faiss_index",
    "fit_logistic",
    "groups",
    "judge_views",
    "knn_accuracy",
    "knn_predict",
    "near_duplicates",
    "near_duplicates_by",
    "nearest",
    "neighbour_agreement",
    "pixels",
    "rankme",
    "uniformity",
]
