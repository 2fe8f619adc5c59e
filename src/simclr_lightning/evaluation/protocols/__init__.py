"""Score an encoder on labeled images by the paper's protocols.

``frozen`` and ``sgd`` contain the protocols. Each is a function that takes a `Subject` (``subject``) and options, and
returns a list of `Score` (``score``). ``features`` extracts h once for all protocols, and ``cache`` stores it on disk.
``evaluation`` runs several protocols. ``published`` lists scores of others for comparison.

To add a protocol, write such a function and add its line to `PROTOCOLS` (docs/bring_your_own.md).
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
"""The module of each protocol, by the name of its function."""

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
