"""Evaluate a representation h, with labels and without.

``features`` computes h of images, ``neighbours`` finds nearest neighbors, ``knn`` classifies by their votes, ``search``
finds near-duplicates, ``probe`` fits logistic regression, ``subsets`` draws class-balanced labels, ``intervals``
computes confidence intervals, ``label_free`` computes scores without labels. ``classifier`` trains by SGD; import it
from `simclr_lightning.evaluation.classifier`, because it imports Lightning, which takes seconds.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.evaluation.features import extract as extract
    from simclr_lightning.evaluation.intervals import (
        bootstrap_interval as bootstrap_interval,
        seeds_interval as seeds_interval,
    )
    from simclr_lightning.evaluation.knn import (
        knn_accuracy as knn_accuracy,
        knn_predict as knn_predict,
        knn_sweep as knn_sweep,
        pixels as pixels,
    )
    from simclr_lightning.evaluation.label_free import (
        alignment as alignment,
        effective_rank as effective_rank,
        neighbour_agreement as neighbour_agreement,
        rankme as rankme,
        score_views as score_views,
        uniformity as uniformity,
    )
    from simclr_lightning.evaluation.neighbours import nearest as nearest
    from simclr_lightning.evaluation.probe import (
        L2_GRID as L2_GRID,
        LinearWeights as LinearWeights,
        LogisticResult as LogisticResult,
        accuracy as accuracy,
        choose_l2 as choose_l2,
        fit_logistic as fit_logistic,
    )
    from simclr_lightning.evaluation.search import (
        Finder as Finder,
        Pairs as Pairs,
        exact as exact,
        faiss_index as faiss_index,
        groups as groups,
        near_duplicates as near_duplicates,
        near_duplicates_by as near_duplicates_by,
    )
    from simclr_lightning.evaluation.subsets import balanced_subset as balanced_subset

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
