"""Numbers -> PNG: view pairs, nearest neighbours, a map of the embedding, curves, heat maps, classes.

Every picture is drawn with Matplotlib's objects on an off-screen canvas: no window, no global state. The colours (Okabe
& Ito's, and Tol's muted set for classes) are told apart by colour-blind readers too; right and wrong also differ by a
sign.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.pictures.classes import confusion as confusion
    from simclr_lightning.pictures.classes import per_class as per_class
    from simclr_lightning.pictures.images import image_rows as image_rows
    from simclr_lightning.pictures.images import neighbours as neighbours
    from simclr_lightning.pictures.images import view_pairs as view_pairs
    from simclr_lightning.pictures.lines import curves as curves
    from simclr_lightning.pictures.lines import trends as trends
    from simclr_lightning.pictures.maps import embedding_map as embedding_map
    from simclr_lightning.pictures.sweeps import HeatMap as HeatMap
    from simclr_lightning.pictures.sweeps import Histogram as Histogram
    from simclr_lightning.pictures.sweeps import heat_maps as heat_maps
    from simclr_lightning.pictures.sweeps import similarities as similarities

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
