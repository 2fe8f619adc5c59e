"""Draw PNG files: images, maps of features, curves, heat maps and results for each class.

``images`` draws view pairs and nearest neighbors, ``maps`` features in the plane, ``lines`` curves and trends,
``sweeps`` heat maps and histograms, ``classes`` confusion matrices and accuracies; ``canvas`` has what they share.

Matplotlib draws on an off-screen canvas: no window, no pyplot, no global state. Color-blind readers can distinguish the
colors (by Okabe & Ito, and Tol's muted set for classes); correct and wrong also differ by a sign.
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
