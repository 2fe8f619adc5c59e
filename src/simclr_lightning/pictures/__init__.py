"""Draw PNG files: images, maps of features, curves, heat maps and results for each class.

``images`` draws view pairs and nearest neighbors, ``maps`` features in the plane (``points`` stores them
for later), ``lines`` curves and trends,
``sweeps`` heat maps and histograms, ``classes`` confusion matrices and accuracies; ``canvas`` has what they share.

Matplotlib draws on an off-screen canvas: no window, no pyplot, no global state. Color-blind readers can distinguish the
colors (by Okabe & Ito, and Tol's muted set for classes); correct and wrong also differ by a sign.
"""

from typing import TYPE_CHECKING

from simclr_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from simclr_lightning.pictures.classes import confusion as confusion, per_class as per_class
    from simclr_lightning.pictures.images import (
        image_rows as image_rows,
        neighbours as neighbours,
        view_pairs as view_pairs,
    )
    from simclr_lightning.pictures.lines import curves as curves, trends as trends
    from simclr_lightning.pictures.maps import embedding_map as embedding_map
    from simclr_lightning.pictures.points import map_of_points as map_of_points, save_points as save_points
    from simclr_lightning.pictures.sweeps import (
        HeatMap as HeatMap,
        Histogram as Histogram,
        heat_maps as heat_maps,
        similarities as similarities,
    )

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
