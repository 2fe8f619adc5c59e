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
    from simclr_lightning.evaluation.intervals import bootstrap_interval as bootstrap_interval
    from simclr_lightning.evaluation.intervals import seeds_interval as seeds_interval
    from simclr_lightning.evaluation.knn import knn_accuracy as knn_accuracy
    from simclr_lightning.evaluation.knn import knn_predict as knn_predict
    from simclr_lightning.evaluation.knn import knn_sweep as knn_sweep
    from simclr_lightning.evaluation.knn import pixels as pixels
    from simclr_lightning.evaluation.label_free import alignment as alignment
    from simclr_lightning.evaluation.label_free import effective_rank as effective_rank
    from simclr_lightning.evaluation.label_free import neighbour_agreement as neighbour_agreement
    from simclr_lightning.evaluation.label_free import rankme as rankme
    from simclr_lightning.evaluation.label_free import score_views as score_views
    from simclr_lightning.evaluation.label_free import uniformity as uniformity
    from simclr_lightning.evaluation.neighbours import nearest as nearest
    from simclr_lightning.evaluation.probe import L2_GRID as L2_GRID
    from simclr_lightning.evaluation.probe import LinearWeights as LinearWeights
    from simclr_lightning.evaluation.probe import LogisticResult as LogisticResult
    from simclr_lightning.evaluation.probe import accuracy as accuracy
    from simclr_lightning.evaluation.probe import choose_l2 as choose_l2
    from simclr_lightning.evaluation.probe import fit_logistic as fit_logistic
    from simclr_lightning.evaluation.search import Finder as Finder
    from simclr_lightning.evaluation.search import Pairs as Pairs
    from simclr_lightning.evaluation.search import exact as exact
    from simclr_lightning.evaluation.search import faiss_index as faiss_index
    from simclr_lightning.evaluation.search import groups as groups
    from simclr_lightning.evaluation.search import near_duplicates as near_duplicates
    from simclr_lightning.evaluation.search import near_duplicates_by as near_duplicates_by
    from simclr_lightning.evaluation.subsets import balanced_subset as balanced_subset

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
