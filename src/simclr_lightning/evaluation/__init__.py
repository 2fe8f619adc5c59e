"""Judging h: features, nearest neighbours, kNN, logistic regression, and signs of collapse without labels."""

from simclr_lightning.evaluation.features import extract
from simclr_lightning.evaluation.knn import knn_accuracy, knn_predict, pixels
from simclr_lightning.evaluation.label_free import effective_rank
from simclr_lightning.evaluation.neighbours import nearest
from simclr_lightning.evaluation.probe import (
    L2_GRID,
    LinearWeights,
    LogisticResult,
    accuracy,
    choose_l2,
    fit_logistic,
)

__all__ = [
    "L2_GRID",
    "LinearWeights",
    "LogisticResult",
    "accuracy",
    "choose_l2",
    "effective_rank",
    "extract",
    "fit_logistic",
    "knn_accuracy",
    "knn_predict",
    "nearest",
    "pixels",
]
