"""Numbers -> PNG: view pairs, nearest neighbours, a map of the embedding, curves, heat maps, classes.

Every picture is drawn with Matplotlib's objects on an off-screen canvas: no window, no global state. The colours (Okabe
& Ito's, and Tol's muted set for classes) are told apart by colour-blind readers too; right and wrong also differ by a
sign.
"""

from simclr_lightning.pictures.classes import confusion, per_class
from simclr_lightning.pictures.images import image_rows, neighbours, view_pairs
from simclr_lightning.pictures.lines import curves, trends
from simclr_lightning.pictures.maps import embedding_map
from simclr_lightning.pictures.sweeps import HeatMap, Histogram, heat_maps, similarities

__all__ = [
    "HeatMap",
    "Histogram",
    "confusion",
    "curves",
    "embedding_map",
    "heat_maps",
    "image_rows",
    "neighbours",
    "per_class",
    "similarities",
    "trends",
    "view_pairs",
]
