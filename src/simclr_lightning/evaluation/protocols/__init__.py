"""The paper's protocols: score a frozen encoder's h, or train on it, on a labeled data set.

``features`` extracts h once for all of them (``cache`` keeps it on disk), ``frozen`` and ``sgd`` hold the protocols,
``score`` is what each returns, ``subject`` what each takes, ``published`` the figures of others, ``evaluation`` runs
several.

A further protocol is a function ``(subject, options) -> [Score]`` and its line in `PROTOCOLS`.
"""

from typing import TYPE_CHECKING, Final

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.evaluation.protocols.evaluation import (
        Evaluation as Evaluation,
        Found as Found,
        found as found,
    )
    from simclr_lightning.evaluation.protocols.features import Extractor as Extractor, checked_parts as checked_parts
    from simclr_lightning.evaluation.protocols.score import Score as Score
    from simclr_lightning.evaluation.protocols.subject import Protocol as Protocol, Subject as Subject

PROTOCOLS: Final[dict[str, str]] = {
    "knn": "simclr_lightning.evaluation.protocols.frozen",
    "lbfgs": "simclr_lightning.evaluation.protocols.frozen",
    "linear": "simclr_lightning.evaluation.protocols.sgd",
    "semi": "simclr_lightning.evaluation.protocols.sgd",
    "finetune": "simclr_lightning.evaluation.protocols.sgd",
}
"""The module that holds each protocol, a function of the protocol's name."""

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
