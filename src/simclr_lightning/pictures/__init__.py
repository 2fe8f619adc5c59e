"""Numbers -> PNG: view pairs, nearest neighbours, a map of the embedding, curves over the epochs.

Every picture is drawn with Matplotlib's objects on an off-screen canvas: no window, no global state. The colours (Okabe
& Ito's, and Tol's muted set for classes) are told apart by colour-blind readers too; right and wrong also differ by a
sign.
"""

from simclr_lightning.pictures.images import image_rows, neighbours, view_pairs
from simclr_lightning.pictures.lines import curves
from simclr_lightning.pictures.maps import embedding_map

__all__ = ["curves", "embedding_map", "image_rows", "neighbours", "view_pairs"]
